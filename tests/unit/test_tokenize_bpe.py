"""The BPE tokenizer: the library's ids on whole texts, and clear errors for files that cannot be used."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, trainers

from livelm.config import validate
from livelm.errors import ConfigError
from livelm.tokenize.bpe import Bpe, BpeConfig

DATA = Path(__file__).parents[2].parent / "shared/data"

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a small byte-level tokenizer without special tokens."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(["when the word ends the next word begins, e\u0271 é\n"] * 5, trainer)
    return json.loads(library.to_str())


@pytest.fixture
def build(tiny: dict[str, Any], tmp_path: Path) -> Callable[..., Bpe]:
    """Change the tiny tokenizer's JSON, write it, load it."""

    def load(change: Change = lambda raw: None, **values: Any) -> Bpe:
        raw = json.loads(json.dumps(tiny))
        change(raw)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(raw))
        return Bpe(validate(BpeConfig, {"file": str(path), **values}, "tokenizer"))

    return load


def special(*tokens: tuple[int, str]) -> Change:
    def change(raw: dict[str, Any]) -> None:
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        raw["added_tokens"] = [{"id": id_, "content": content, **flags} for id_, content in tokens]

    return change


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GPT-2 (made from its two files) and DeepSeek-V3."""
    folder = DATA / "tokenizers"
    if not folder.exists():
        pytest.skip(f"{folder} is absent: it is test data that is not part of the repository")
    vocabulary = json.loads((folder / "gpt2/encoder.json").read_text("utf-8"))
    lines = (folder / "gpt2/vocab.bpe").read_text("utf-8").split("\n")[1:]
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
    library = Library(models.BPE(vocabulary, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2 = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    library.save(str(gpt2))
    return {"gpt2": gpt2, "deepseek-v3": folder / "deepseek-v3/tokenizer.json"}


def sample_texts() -> list[str]:
    with gzip.open(DATA / "text/openwebtext-1000/openwebtext-1000.jsonl.gz") as lines:
        texts = [json.loads(line)["text"] for _, line in zip(range(40), lines, strict=False)]
    logs = [p.read_bytes().decode() for p in sorted((DATA / "logs").rglob("*2k.log"))[:2]]
    code = Path(__file__).read_text()
    spaces = "f\t g\u3000 h\u3000\u3000 5 it's\n's \u00a0 x\r\n\r\ny 1234567 漢 字\n漢\nか\x00 z\n\x85 q"
    rare = f"a.\n/b\n\n c\n\n\nd  e \n {spaces}"
    return [*texts, *(log[:30_000] for log in logs), code, "\n".join([rare] * 30)]


@pytest.mark.parametrize("name", ["gpt2", "deepseek-v3"])
def test_cutting_into_segments_gives_the_ids_of_the_whole_text(published: dict[str, Path], name: str) -> None:
    tokenizer, library = Bpe(BpeConfig(file=str(published[name]))), Library.from_file(str(published[name]))
    for text in sample_texts():
        assert tokenizer.encode(text.encode()).ids.tolist() == library.encode(text, add_special_tokens=False).ids


def test_gpt2_gives_its_published_ids(published: dict[str, Path]) -> None:
    tokenizer = Bpe(BpeConfig(file=str(published["gpt2"])))
    assert tokenizer.encode(b"Hello world").ids.tolist() == [15496, 995]
    assert (tokenizer.mark, tokenizer.n_vocabulary) == (50256, 50257)


def test_deepseek_fits_a_table_that_is_smaller_than_its_special_ids(published: dict[str, Path]) -> None:
    file = str(published["deepseek-v3"])
    natural, small = Bpe(BpeConfig(file=file)), Bpe(BpeConfig(file=file, n_vocabulary=128_256))
    assert natural.n_vocabulary == 128_815
    assert small.n_vocabulary == 128_256
    assert small.mark == natural.mark == 0
    with pytest.raises(ConfigError, match=r"n_vocabulary is 127999, .* ids up to 127999"):
        Bpe(BpeConfig(file=file, n_vocabulary=127_999))


def test_bytes_that_are_not_utf8_become_single_byte_tokens(build: Callable[..., Bpe]) -> None:
    tokenizer = build()
    tokens = tokenizer.encode(b"the word\xff\xc3 the word")
    assert [tokenizer.decode([i]) for i in tokens.ids[tokens.n_bytes == 1].tolist()][-2:] == [b"\xff", b"\xc3"]
    around = tokenizer.encode(b"the word").ids.tolist(), tokenizer.encode(b" the word").ids.tolist()
    assert [i for i in tokens.ids.tolist() if tokenizer.decode([i]) not in (b"\xff", b"\xc3")] == [
        *around[0],
        *around[1],
    ]


def test_a_normalizer_and_a_prefix_space_change_no_byte(build: Callable[..., Bpe]) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["normalizer"] = json.loads(normalizers.NFC().__getstate__())
        raw["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, raw["pre_tokenizer"]],
        }
        raw["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True

    text = "e\u0271 is not é".encode()
    assert build(change).encode(text).ids.tolist() == build().encode(text).ids.tolist()


def test_what_a_pre_tokenizer_drops_is_encoded_byte_by_byte(build: Callable[..., Bpe]) -> None:
    def change(raw: dict[str, Any]) -> None:
        drop = {"type": "Split", "pattern": {"String": "QQ"}, "behavior": "Removed", "invert": False}
        raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [drop, raw["pre_tokenizer"]]}

    text = b"the word " * 10 + b"QQ" + b" the word" * 10
    tokens = build(change).encode(text)
    assert build(change).decode(tokens.ids.tolist()) == text
    assert int(tokens.n_bytes.sum()) == len(text)
    assert tokens.n_bytes.max() > 1, "only the segment that lost bytes falls back"


def test_dropout_is_off(build: Callable[..., Bpe]) -> None:
    tokenizer = build(lambda raw: raw["model"].update(dropout=0.9))
    assert tokenizer.encode(b"the word " * 50).ids.tolist() == build().encode(b"the word " * 50).ids.tolist()


def test_a_special_token_is_reserved_even_where_merges_are_ignored(build: Callable[..., Bpe]) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["model"]["ignore_merges"] = True
        raw["model"]["vocab"]["endoftext"] = 270
        special((270, "endoftext"))(raw)

    tokenizer = build(change, mark="endoftext")
    assert tokenizer.mark == 270
    assert tokenizer.encode(b"endoftext").ids.tolist() == build().encode(b"endoftext").ids.tolist()
    assert build().encode(b"endoftext").n_bytes.max() > 1, "the word has merges, so falling back to bytes would show"


def test_the_mark_is_the_named_token_else_a_known_one_else_a_new_id(build: Callable[..., Bpe]) -> None:
    both = special((270, "<one>"), (271, "<s>"))
    assert (build(both).mark, build(both).n_vocabulary) == (271, 272)
    assert build(both, mark="<one>").mark == 270
    assert (build().mark, build().n_vocabulary) == (270, 271)


def test_the_mark_finds_a_free_id_in_a_smaller_table(build: Callable[..., Bpe]) -> None:
    beyond = special((5000, "<s>"))
    assert build(beyond).n_vocabulary == 5001
    assert (build(beyond, n_vocabulary=271).mark, build(beyond, n_vocabulary=271).n_vocabulary) == (270, 271)
    assert (build(n_vocabulary=512).mark, build(n_vocabulary=512).n_vocabulary) == (270, 512)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_vocabulary": 269}, r"n_vocabulary is 269, but .* ids up to 269"),
        ({"n_vocabulary": 270}, r"n_vocabulary is 270, .* no id is left for the mark\. Set it to 271"),
        ({"mark": "<none>"}, r"mark is '<none>', which is not a special token"),
        ({"mark": "the"}, r"mark is 'the', which is not a special token"),
        ({"n_vocabulary": "270"}, r"'tokenizer\.n_vocabulary' is '270'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(build: Callable[..., Bpe], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**values)


def remove_byte(raw: dict[str, Any]) -> None:
    del raw["model"]["vocab"]["!"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_byte, r"255 of the 256 byte values \(0x21 is missing\)"),
        (lambda raw: raw.update(pre_tokenizer={"type": "Whitespace"}), "has no ByteLevel pre-tokenizer"),
        (lambda raw: raw.update(pre_tokenizer=None), "has no ByteLevel pre-tokenizer"),
        (lambda raw: raw["model"].update(type="Unigram"), "is of type 'Unigram'"),
        (lambda raw: raw["model"].update(vocab=7), r"damaged at 'model\.vocab'"),
        (lambda raw: raw["model"]["vocab"].update({"the": 2**40}), r"damaged at 'model\.vocab\.the'"),
        (lambda raw: raw["model"].update(end_of_word_suffix="</w>"), "adds '</w>'"),
        (lambda raw: raw["model"].update(merges=["! nowhere"]), "refused by the tokenizers library"),
        (lambda raw: raw.pop("model"), "has no `model`"),
        (
            lambda raw: raw.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "WhitespaceSplit"}, raw["pre_tokenizer"]],
                }
            ),
            "loses bytes",
        ),
    ],
)
def test_a_file_that_is_not_lossless_or_damaged_is_refused(
    build: Callable[..., Bpe], change: Change, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(change)


def test_a_missing_file_a_folder_and_other_content_are_refused_by_name(tmp_path: Path) -> None:
    for content, message in [
        (b"not json", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[1]", "no `model`"),
        (b"", "not JSON"),
    ]:
        path = tmp_path / "tokenizer.json"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            Bpe(BpeConfig(file=str(path)))
    with pytest.raises(ConfigError, match=r"nowhere\.json' cannot be read: No such file"):
        Bpe(BpeConfig(file=str(tmp_path / "nowhere.json")))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Bpe(BpeConfig(file=str(tmp_path)))
