"""What every policy of learning promises, for every architecture: the named parameters learn, nothing else moves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from livelm.config import LearnSettings, change_recipe, load_recipe, validate
from livelm.errors import CheckpointError, ConfigError
from livelm.learn import Learner, apply_policy, inherit, learning_kinds, settings_for
from livelm.models import MODELS
from livelm.optim import OPTIMIZERS
from livelm.run import fork, load, resume, run_session, start
from livelm.session import Session, Stop

N_VOCABULARY = 257
TINY: dict[str, dict[str, Any]] = {
    "bit": {"d_model": 16, "n_heads": 2, "n_layers": 3, "context": 16},
    "looped": {"d_model": 16, "n_heads": 2, "context": 16, "n_valued": 0, "ngrams": [2], "ngram_rows": 31},
    "rwkv7": {"d_model": 16, "n_layers": 3, "d_head": 8},
    "transformer": {"d_model": 16, "n_heads": 2, "n_layers": 3, "context": 16, "ngrams": [2], "ngram_rows": 31},
    "worker": {"d_model": 16, "n_heads": 2, "n_layers": 3, "context": 16, "stride": 2},
}
"""Settings that make an architecture tiny; one that is not named here is used as its own defaults make it."""
POLICIES = ["all", "state", "head", "last:1", "last:2", "lora:2"]
every = pytest.mark.parametrize("name", sorted(MODELS))
WITHOUT_STATE = {name for name, kind in MODELS.items() if "initial_state" not in kind.Config.model_fields}


def pairs(policies: list[str]) -> pytest.MarkDecorator:
    """Every architecture with every policy it can have."""
    fitting = [(n, p) for n in sorted(MODELS) for p in policies if p != "state" or n not in WITHOUT_STATE]
    return pytest.mark.parametrize(("name", "policy"), fitting)


TEXT = b"".join(b"the %d. line of a text with much to learn from\n" % i for i in range(12))


def build(name: str, policy: str) -> Any:
    torch.manual_seed(0)
    kind = MODELS[name]
    settings = settings_for(policy, name, kind.Config.model_validate(TINY.get(name, {})))
    model = kind(settings, N_VOCABULARY)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the silent start, so that all of it shows
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    apply_policy(policy, model)
    return model


def tokens(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(N_VOCABULARY, (1, n), generator=generator)
    return ids, torch.rand(1, n, generator=generator) < 1 / 12


def wanted(model: Any, policy: str) -> set[str]:
    """Names of what the policy trains, found in another way than the policy does."""
    outline, (word, _, number) = model.outline(), policy.partition(":")
    names = {id(p): name for name, p in model.named_parameters()}
    layers = {name: [q for q, module in enumerate(outline.layers) if id(p) in set(map(id, module.parameters()))]
              for name, p in model.named_parameters()}  # fmt: skip
    heads = [[part] if isinstance(part, torch.nn.Parameter) else part.parameters() for part in outline.head]
    in_head = {names[id(p)] for head in heads for p in head}
    if word == "all":
        return set(names.values())
    if word == "state":
        return {names[id(p)] for p in outline.initial}
    if word == "lora":
        return {name for name in names.values() if name.rpartition(".")[2] in ("lora_a", "lora_b")}
    last = len(outline.layers) - (int(number) if word == "last" else 0)
    return in_head | {name for name, found in layers.items() if any(q >= last for q in found)}


@pairs(POLICIES)
def test_what_a_policy_names_changes_and_nothing_else(name: str, policy: str) -> None:
    model = build(name, policy)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), learning_kinds(model))
    before = {label: p.detach().clone() for label, p in model.named_parameters()}
    ids, starts = tokens(33)
    for _ in range(3):  # adapters and initial values start at zero and pass gradient on only after an update
        optimizer.zero_grad()
        model.nats(ids[:, :-1], starts[:, :-1], ids[:, 1:], model.init_state(1))[0].mean().backward()
        optimizer.step()
    changed = {label for label, p in model.named_parameters() if not torch.equal(p, before[label])}
    assert changed == wanted(model, policy)
    assert changed
    held = {id(p) for part in optimizer.parts for p in part.state}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}, "what is frozen needs no optimizer state"


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_muon_takes_every_policy(policy: str) -> None:
    model = build("transformer", policy)
    kind = OPTIMIZERS["muon"]
    optimizer = kind(kind.Config(), learning_kinds(model))
    before = {label: p.detach().clone() for label, p in model.named_parameters()}
    ids, starts = tokens(17)
    model.nats(ids[:, :-1], starts[:, :-1], ids[:, 1:], model.init_state(1))[0].mean().backward()
    optimizer.step()
    changed = {label for label, p in model.named_parameters() if not torch.equal(p, before[label])}
    assert changed
    assert changed <= wanted(model, policy)


@pairs(["state", "lora:2"])
def test_what_a_policy_adds_changes_no_prediction_at_first(name: str, policy: str) -> None:
    plain = build(name, "all")
    kind = MODELS[name]
    model = kind(settings_for(policy, name, plain.config), N_VOCABULARY)
    apply_policy(policy, model)
    model.load_state_dict(inherit(plain.state_dict(), model))
    ids, starts = tokens(40)
    ours, theirs = (m(ids, starts, m.init_state(1))[0] for m in (model, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)


@every
def test_merged_adapters_predict_the_same(name: str) -> None:
    adapted, plain = build(name, "lora:2"), build(name, "all")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    ids, starts = tokens(40)
    ours, _ = adapted(ids, starts, adapted.init_state(1))
    before, _ = plain(ids, starts, plain.init_state(1))
    plain.load_state_dict(inherit(adapted.state_dict(), plain))
    theirs, _ = plain(ids, starts, plain.init_state(1))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-2)


@every
@pytest.mark.parametrize(("policy", "said"), [("last:99", "at most last:"), ("lora:500", "must be thinner")])
def test_a_policy_that_does_not_fit_the_model_is_refused(name: str, policy: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(name, policy)


@pytest.mark.parametrize("text", ["", "al", "last", "last:0", "lora:-1", "lora:4.5", "state:1", "head:2", "all "])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"learn\.policy.*write all, state, head, last:N or lora:R"):
        validate(LearnSettings, {"policy": text}, "learn")


def test_a_model_without_an_initial_state_says_so() -> None:
    with pytest.raises(ConfigError, match="'mine' has no initial state"):
        settings_for("state", "mine", LearnSettings())


def test_a_frozen_token_table_keeps_no_gradient() -> None:
    kind = MODELS["transformer"]
    config = kind.Config.model_validate(
        {"d_model": 16, "n_layers": 1, "n_heads": 2, "tied": True, "token_table": "float32"}
    )
    model = kind(config, N_VOCABULARY)
    apply_policy("lora:2", model)
    ids, starts = tokens(17)
    model.nats(ids[:, :-1], starts[:, :-1], ids[:, 1:], model.init_state(1))[0].mean().backward()
    parts = model.embed.weight.gradient_parts
    assert (parts.products, parts.rows, parts.reads) == ([], [], [])


def test_a_batch_without_a_worker_teaches_a_workers_state_nothing() -> None:
    model = MODELS["worker"](MODELS["worker"].Config(d_model=16, n_heads=2, n_layers=1, initial_state="learned"), 257)
    apply_policy("state", model)
    optimizer = OPTIMIZERS["adamw"](OPTIMIZERS["adamw"].Config(), learning_kinds(model))
    learner = Learner(model, optimizer, lambda n: 1.0, LearnSettings(), (1, N_VOCABULARY, 256))
    loss = model.nats(*[torch.zeros(1, 3, dtype=d) for d in (torch.long, torch.bool, torch.long)], learner.lanes)[0]
    assert learner._backward(loss.mean()) == (0.0, None)


# ------------------------------------------------------------------------------------------------- whole runs

RUN = ["run.threads=1", "memory.name=none", "feed.update_tokens=32", "schedule.warmup=2", "checkpoint.every_s=1e9"]


def recipe_of(name: str, text: Path, *more: str) -> Any:
    model = [f"model.{key}={json.dumps(value)}" for key, value in TINY.get(name, {}).items()]
    uris = f"source.uris={json.dumps([str(text)])}"
    last = "learn.average_updates=0"  # what is forked are the last weights, and they are what is looked at here
    return load_recipe(None, "tiny", [*RUN, uris, "model.name=none", f"model.name={name}", *model, last, *more])


def records(run: Path, *kinds: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_bytes().splitlines()]
    return [record for record in found if record["kind"] in kinds]


def finish(session: Session) -> None:
    run_session(session, [])


@pytest.fixture(autouse=True)
def quick_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livelm.evaluate.baselines.BaselineWorker.finish", lambda *_: None)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A run of each architecture that learned from a text, and the text."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "text.txt").write_bytes(TEXT)

    def find(name: str) -> tuple[Path, Path]:
        if not (folder / name).exists():
            finish(start(recipe_of(name, folder / "text.txt"), folder / name, Stop()))
        return folder / name, folder / "text.txt"

    return find


@pairs(["state", "lora:2"])
def test_a_fork_under_a_policy_resumes_exactly(name: str, policy: str, learned: Any, tmp_path: Path) -> None:
    run, text = learned(name)
    change = [f"learn.policy={policy}"]
    finish(fork(run, [str(text)], tmp_path / "whole", "", Stop(), change))
    finish(fork(run, [str(text)], tmp_path / "halves", "200B", Stop(), change))
    finish(resume(tmp_path / "halves", "1MB", Stop()))
    whole, halves = (records(tmp_path / part, "scored", "update") for part in ("whole", "halves"))
    assert whole == halves
    first = records(tmp_path / "whole", "run")[0]
    assert 0 < first["n_trainable"] < first["n_parameters"]
    assert first["recipe"]["learn"]["policy"] == policy
    kept, own = load(run)[0].model.state_dict(), load(tmp_path / "whole")[0].model.state_dict()
    moved = {label for label, tensor in kept.items() if not torch.equal(tensor, own[label])}
    model = load(tmp_path / "whole")[0].model
    assert moved == wanted(model, policy) & kept.keys()


@pytest.mark.parametrize("name", ["rwkv7", "transformer"])
def test_forks_of_forks_keep_what_was_learned(name: str, learned: Any, tmp_path: Path, livelm_here: Any) -> None:
    run, text = learned(name)
    before = run
    for policy in ("lora:2", "state", "all"):
        out = tmp_path / policy.replace(":", "")
        livelm_here("fork", before, text, "--set", f"learn.policy={policy}", "--for", "300B", "--out", out)
        expected = json.loads(livelm_here("eval", before, text, "--for", "31B", "--json").out)["bits"]
        assert records(out, "scored")[0]["bits"] == pytest.approx(expected, rel=1e-4), policy
        before = out
    assert len(livelm_here("generate", tmp_path / "lora2", "--bytes", "5").out) > 0


def test_a_fork_with_another_rate_uses_it(learned: Any, tmp_path: Path) -> None:
    run, text = learned("transformer")
    finish(fork(run, [str(text)], tmp_path / "fork", "", Stop(), ["optimizer.rate=0.5", "schedule.warmup=0"]))
    assert records(tmp_path / "fork", "update")[0]["rate"] == 0.5


def test_a_run_begins_with_published_weights(tmp_path: Path, livelm_here: Any) -> None:
    model = build("rwkv7", "all")
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp_path / "rwkv.safetensors")
    (tmp_path / "text.txt").write_bytes(TEXT)
    livelm_here(
        *("fork", tmp_path / "rwkv.safetensors", tmp_path / "text.txt", "--set", "learn.policy=state"),
        *("--set", "run.threads=1", "--set", "optimizer.rate=0.1", "--out", tmp_path / "run"),
    )
    first = records(tmp_path / "run", "run")[0]
    assert first["forked_from"] == "rwkv.safetensors"
    assert (first["recipe"]["model"]["d_model"], first["n_trainable"]) == (16, 3 * 2 * 8 * 8)
    ids = torch.tensor([[256, *TEXT[:46]]])
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[0, 0] = True
    nats, _ = model.nats(ids, starts, torch.tensor([[*TEXT[:47]]]), model.init_state(1))
    scored = records(tmp_path / "run", "scored")[0]
    assert scored["bits"] * 0.6931471805599453 == pytest.approx(nats.sum().item(), rel=1e-4)


def test_published_weights_that_do_not_fit_the_tokenizer_are_named(tmp_path: Path) -> None:
    kind = MODELS["rwkv7"]
    model = kind(kind.Config(d_model=16, n_layers=1, d_head=8), 99)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, tmp_path / "rwkv.safetensors")
    (tmp_path / "text.txt").write_bytes(TEXT)
    with pytest.raises(CheckpointError, match=r"emb\.weight is \(99, 16\), not \(257, 16\)"):
        fork(tmp_path / "rwkv.safetensors", [str(tmp_path / "text.txt")], tmp_path / "run", "", Stop())
    assert not (tmp_path / "run").exists()


def test_a_changed_recipe_is_checked() -> None:
    recipe = load_recipe(None, "tiny")
    assert change_recipe(recipe, ["learn.policy=head"]).learn.policy == "head"
    with pytest.raises(ConfigError, match="Did you mean 'policy'"):
        change_recipe(recipe, ["learn.polcy=head"])


def test_only_bit_has_no_state_to_train_and_says_so() -> None:
    assert {"bit"} == WITHOUT_STATE
    with pytest.raises(ConfigError, match="'bit' has no initial state to train"):
        build("bit", "state")
