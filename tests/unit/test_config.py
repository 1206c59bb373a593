"""Recipes: what is wrong is named, with the value and the nearest right name."""

from pathlib import Path

import pytest

from livelm.config import Budget, Recipe, dump_recipe, load_recipe, parse_budget, validate
from livelm.errors import ConfigError
from livelm.memory import MEMORIES
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS, SCHEDULES
from livelm.tokenize import TOKENIZERS


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_size_is_a_whole_recipe(size: str) -> None:
    assert load_recipe(None, size).model.name == "transformer"


def test_a_dumped_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(None, "tiny", ['source.uris=["a b", "ü\\n\\"x"]', "model.ngrams=[2, 3]", "run.budget=5MB"])
    (tmp_path / "r.toml").write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(tmp_path / "r.toml", "tiny") == recipe


def test_a_recipe_replaces_whole_sections_of_the_size(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[model]\nname = "transformer"\nd_model = 64\n')
    recipe = load_recipe(tmp_path / "r.toml", "tiny")
    assert recipe.model.settings() == {"d_model": 64}
    assert recipe.optimizer == load_recipe(None, "tiny").optimizer


def test_set_reaches_any_setting_and_bare_words_are_text() -> None:
    recipe = load_recipe(None, "tiny", ["feed.lanes=3", "learn.clip=0.5", "name=my-run", "checkpoint.every_s=1"])
    assert (recipe.feed.lanes, recipe.learn.clip, recipe.name) == (3, 0.5, "my-run")


def test_another_architecture_does_not_inherit_settings() -> None:
    assert load_recipe(None, "tiny", ["model.name=worker", "model.k=4"]).model.settings() == {"k": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("feed.lane=2", "Did you mean 'lanes'"),
        ("fed.lanes=2", "Did you mean 'feed'"),
        ("feed.lanes=two", "'feed.lanes' is 'two'"),
        ("feed.lanes=0", "greater than or equal to 1"),
        ("feed.lanes=1.5", "'feed.lanes' is 1.5"),
        ("learn.clip=nan", "'learn.clip'"),
        ("feed.lanes", "write it as section.key=value"),
        ("feed..lanes=1", "write it as section.key=value"),
        ("name.first=x", "'name' is {'first': 'x'}"),
        ("run.seed=-1", "'run.seed' is -1"),
    ],
)
def test_a_wrong_change_is_named(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(None, "tiny", [change])
    assert message in str(caught.value)


def test_a_value_is_not_taken_for_a_section() -> None:
    with pytest.raises(ConfigError, match="a value, not a section"):
        load_recipe(None, "tiny", ["name=x", "name.first=y"])


def test_recipes_that_are_shipped_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("memory.toml", "recipes/memory.toml"):
        assert load_recipe(Path(name), "tiny").name == "memory"
    for name in ("other/memory.toml", str(tmp_path / "memory.toml"), "nothing.toml"):
        with pytest.raises(ConfigError, match=r"there is no recipe.*livelm ships bit\.toml, .*worker\.toml\."):
            load_recipe(Path(name), "tiny")
    (tmp_path / "memory.toml").write_text('name = "mine"\n')
    assert load_recipe(Path("memory.toml"), "tiny").name == "mine"


def test_a_wrong_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no recipe"):
        load_recipe(tmp_path / "none.toml", "tiny")
    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(ConfigError, match=r"bad\.toml.*line 1"):
        load_recipe(tmp_path / "bad.toml", "tiny")
    (tmp_path / "nul.toml").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match=r"nul\.toml"):
        load_recipe(tmp_path / "nul.toml", "tiny")


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(ConfigError, match="tiny, small, base"):
        load_recipe(None, "huge")


def test_a_missing_section_is_named() -> None:
    with pytest.raises(ConfigError, match="'model' is missing"):
        validate(Recipe, {"optimizer": {"name": "adamw"}}, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Budget()),
        ("60s", Budget(seconds=60)),
        ("1.5m", Budget(seconds=90)),
        ("2h", Budget(seconds=7200)),
        ("5MB", Budget(n_bytes=5_000_000)),
        ("1GiB", Budget(n_bytes=1 << 30)),
        (" 10 kb ", Budget(n_bytes=10_000)),
    ],
)
def test_budgets_are_read(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["60", "s", "-5s", "0s", "5 parsecs", "1e3s", "MB5"])
def test_a_wrong_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--for is"):
        parse_budget(text)


def test_settings_of_a_source_survive_the_recipe_file(tmp_path: Path) -> None:
    changes = [
        'source.uris=["crawl:https://example.org/NaN"]',
        "source.crawl.contact=me@example.org",
        "source.crawl.fetch.max_redirects=3",
        'source.crawl.allow=["127.0.0.1:8080", "Infinity"]',
        "source.mix.weights=[3.0, 1.5]",
        "learn.clip=inf",
    ]
    recipe = load_recipe(None, "tiny", changes)
    (tmp_path / "r.toml").write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(tmp_path / "r.toml", "tiny") == recipe
    assert recipe.source.crawl["fetch"] == {"max_redirects": 3}
    assert recipe.source.uris == ("crawl:https://example.org/NaN",)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_names_parts_and_settings_that_exist(path: Path) -> None:
    recipe = load_recipe(path, "tiny")
    assert recipe.name == path.stem
    for registry, part, where in ((MODELS, recipe.model, "model"), (MEMORIES, recipe.memory, "memory")):
        if part.name != "none":
            validate(registry[part.name].Config, part.settings(), where)
    validate(TOKENIZERS[recipe.tokenizer.name].Config, recipe.tokenizer.settings(), "tokenizer")
    validate(OPTIMIZERS[recipe.optimizer.name].Config, recipe.optimizer.settings(), "optimizer")
    validate(SCHEDULES[recipe.schedule.name], recipe.schedule.settings(), "schedule")
