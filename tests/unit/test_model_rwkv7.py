"""RWKV-7: equal to published weights and their scores, whatever their names; state over a stream; bad checkpoints."""

import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from livelm.config import validate
from livelm.errors import CheckpointError, ConfigError
from livelm.models.rwkv7 import RWKV7, Block, RWKV7Config
from livelm.models.rwkv7_checkpoints import LETTERS, fill, infer_config, load_rwkv7, read_tensors, to_native
from livelm.types import State

Shared = Callable[[str], Path]
SMALL = RWKV7Config(d_model=32, n_layers=3, d_head=16, decay_rank=4, rate_rank=5, value_rank=6, gate_rank=7)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products as small as these are slower with two threads, and many times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def lively(config: RWKV7Config = SMALL, n_vocabulary: int = 40, seed: int = 0) -> RWKV7:
    """A model whose every parameter is away from its silent start."""
    torch.manual_seed(seed)
    model = RWKV7(config, n_vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def read(model: RWKV7, tokens: Tensor) -> Tensor:
    """Logits of whole documents."""
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 0] = True
    with torch.no_grad():
        return model(tokens, starts, model.init_state(len(tokens)))[0]


# ---------------------------------------------------------------------------------------------- published weights


@pytest.mark.parametrize("kind", ["FP32", "FP16"])
def test_the_published_tiny_model_gives_its_published_logits(shared: Shared, kind: str) -> None:
    folder = shared("models/rwkv-tiny")
    model = load_rwkv7(folder / f"tiny-rwkv-7v0-834K-{kind}.bin")
    assert sum(p.numel() for p in model.parameters()) == 829_888
    expected = torch.frombuffer(bytearray((folder / "expected-logits-7v0-834K.bin").read_bytes()), dtype=torch.float32)
    torch.testing.assert_close(read(model, torch.tensor([list(b'"in')]))[0, -1], expected, rtol=0, atol=1e-6)


def test_the_published_tiny_model_reads_a_long_text_alike_in_any_chunks(shared: Shared) -> None:
    model = load_rwkv7(shared("models/rwkv-tiny") / "tiny-rwkv-7v0-834K-FP32.bin")
    text = shared("text/tinyshakespeare/input.txt").read_bytes()[:320]
    tokens = torch.tensor([list(text)])
    whole = read(model, tokens)
    starts, state, parts = torch.zeros_like(tokens, dtype=torch.bool), model.init_state(1), []
    with torch.no_grad():
        for at in [*range(0, 20), *range(20, 320, 75)]:  # single tokens are read by the recurrence
            piece = slice(at, at + 1 if at < 20 else at + 75)
            logits, state = model(tokens[:, piece], starts[:, piece], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


class Biased(nn.Module):
    """Adds what the toy's unused branches still add: their output bias."""

    time_state = None

    def __init__(self, module: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.module, self.bias = module, bias

    def forward(self, *inputs: Any) -> Any:
        out = self.module(*inputs)
        return (out[0] + self.bias, *out[1:]) if isinstance(out, tuple) else out + self.bias


def load_toy(path: Path) -> RWKV7:
    """RWKV-LM's digit reverser: RWKV-7 without an embedding norm, with biases, under names of its own."""
    toy = read_tensors(path)
    names = {
        "e.weight": "emb.weight",
        "lno.weight": "ln_out.weight",
        "lno.bias": "ln_out.bias",
        "o.weight": "head.weight",
    }
    native = {}
    for name, tensor in toy.items():
        layer = re.fullmatch(r"(rwkv|ffn|ln)(\d)([ab]?)\.(.+)", name)
        if layer is not None:
            kind, number, letter, rest = layer.groups()
            part = {"rwkv": "att", "ffn": "ffn", "ln": "ln1" if letter == "a" else "ln2"}[kind]
            native[f"blocks.{int(number) - 1}.{part}.{rest}"] = tensor
        elif name in names:
            native[names[name]] = tensor
    native |= {"blocks.0.ln0.weight": torch.ones(32), "blocks.0.ln0.bias": torch.zeros(32)}
    tensors = to_native(native, "toy")
    model = fill(RWKV7(*infer_config(tensors, "toy")), tensors, "toy")
    model.blocks[0].ln0 = nn.Identity()
    for i, block in enumerate(model.blocks, start=1):
        assert isinstance(block, Block)
        block.att = Biased(block.att, toy[f"rosa{i}.o.bias"])  # type: ignore[assignment]
    model.head = Biased(model.head, toy["o.bias"])  # type: ignore[assignment]
    return model


def test_the_published_toy_reverses_numbers_of_up_to_60_digits(shared: Shared) -> None:
    model = load_toy(shared("models/rwkv7-toy-blinkdl") / "260123_reverse_L2_only_rwkv7.pth")
    assert model.config.d_head == 16
    generator = torch.Generator().manual_seed(42)
    rows, sizes = torch.full((120, 129), 11), torch.arange(120) // 2 + 1
    for row, n in zip(rows, sizes.tolist(), strict=True):  # two numbers of each length, such as 123,321#
        digits = torch.randint(10, (n,), generator=generator)
        digits[0] = digits[0].clamp(min=int(n > 1))
        row[:n], row[n], row[n + 1 : 2 * n + 1] = digits, 10, digits.flip(0)
    said = read(model, rows[:, :-1]).argmax(-1)
    right = [torch.equal(said[i, n : 2 * n + 1], rows[i, n + 1 : 2 * n + 2]) for i, n in enumerate(sizes.tolist())]
    assert all(right), f"{sum(right)} of {len(right)}"


# ------------------------------------------------------------------------------------------------ names and files


def native(model: RWKV7) -> dict[str, Tensor]:
    """The tensors as RWKV-LM stores them."""
    stored = {}
    for name, tensor in model.state_dict().items():
        prefix, _, leaf = name.rpartition(".")
        if leaf == "x_rwkvag":
            stored |= {f"{prefix}.x_{m}": t[None, None].clone() for m, t in zip(LETTERS, tensor, strict=True)}
        elif leaf in ("w0", "a0", "v0", "k_k", "k_a", "x_k"):
            stored[name] = tensor[None, None].clone()
        else:
            stored[name] = tensor.clone()
    stored |= {f"blocks.0.att.v{i}": torch.zeros(1) for i in range(3)}  # stored by trainers, used by nobody
    return stored


def hugging_face(model: RWKV7, *, stacked: bool) -> dict[str, Tensor]:
    """The tensors as flash-linear-attention names them; its older format stacks the token shifts."""
    top = {
        "emb.weight": "model.embeddings.weight",
        "ln_out.weight": "model.norm.weight",
        "ln_out.bias": "model.norm.bias",
        "head.weight": "lm_head.weight",
    }
    parts = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}
    parts |= {f"att.{ours}": f"attn.{ours[0]}_proj" for ours in ("receptance", "key", "value", "output")}
    stored = {}
    for name, tensor in model.state_dict().items():
        layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if layer is None:
            stored[top[name]] = tensor.clone()
            continue
        prefix, rest = f"model.layers.{layer[1]}.", layer[2]
        part, _, leaf = rest.rpartition(".")
        lora = re.fullmatch(r"att\.([wavg])([012])", rest)
        if lora is not None:
            where = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[lora[2]]
            stored[f"{prefix}attn.{lora[1]}_lora.lora.{where}"] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
        elif leaf == "x_rwkvag" and stacked:
            stored[f"{prefix}attn.x_x"] = tensor.clone()
        elif leaf == "x_rwkvag":
            stored |= {f"{prefix}attn.x_{m}": t[None, None].clone() for m, t in zip(LETTERS, tensor, strict=True)}
        else:
            name = f"{parts.get(part, part.replace('att', 'attn'))}.{leaf}"
            stored[prefix + name] = tensor.clone()
    return stored


def cpp(model: RWKV7) -> bytes:
    """The file that rwkv.cpp's converter writes, in float32."""
    c = model.config
    file = [struct.pack("<6I", 0x67676D66, 101, model.n_vocabulary, c.d_model, c.n_layers, 0)]
    for name, tensor in model.state_dict().items():
        tensor = tensor.T if re.search(r"att\.[wavg][12]$", name) else tensor
        tensor = tensor[:, None] if name.endswith("x_rwkvag") else tensor
        file.append(struct.pack("<3I", tensor.dim(), len(name), 0))
        file.append(struct.pack(f"<{tensor.dim()}I", *reversed(tensor.shape)))
        file += [name.encode(), tensor.contiguous().numpy().tobytes()]
    return b"".join(file)


def store(model: RWKV7, folder: Path, kind: str) -> Path:
    if kind == "cpp":
        path = folder / "model.bin"
        path.write_bytes(cpp(model))
    elif kind == "pth":
        path = folder / "model.pth"
        torch.save(native(model), path)
    elif kind == "shards":
        path, tensors = folder / "model.safetensors.index.json", hugging_face(model, stacked=False)
        where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
        for file in set(where.values()):
            save_file({name: tensor for name, tensor in tensors.items() if where[name] == file}, folder / file)
        path.write_text(json.dumps({"weight_map": where}))
    else:
        path = folder / "model.safetensors"
        save_file(native(model) if kind == "native" else hugging_face(model, stacked=kind == "stacked"), path)
    return path


@pytest.mark.parametrize("kind", ["native", "separate", "stacked", "shards", "pth", "cpp"])
def test_weights_are_the_same_under_every_name_and_in_every_file(tmp_path: Path, kind: str) -> None:
    model = lively()
    twin = load_rwkv7(store(model, tmp_path, kind))
    assert twin.config.ranks == model.config.ranks
    tokens = torch.randint(40, (2, 50))
    assert torch.equal(read(twin, tokens), read(model, tokens))


def test_tuned_initial_states_come_with_the_weights(tmp_path: Path) -> None:
    model = lively(SMALL.model_copy(update={"initial_state": "learned"}))
    twin = load_rwkv7(store(model, tmp_path, "native"))
    assert list(map(id, twin.outline().initial)) == [id(block.att.time_state) for block in twin.blocks]  # type: ignore[union-attr]
    tokens = torch.randint(40, (2, 50))
    assert torch.equal(read(twin, tokens), read(model, tokens))


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda t: t.pop("blocks.1.att.k_k"), r"blocks\.1\.att\.k_k is missing"),
    "extra": (lambda t: t.update({"blocks.1.att.odd": torch.zeros(2)}), r"blocks\.1\.att\.odd is unknown"),
    "misshapen": (lambda t: t.update({"ln_out.bias": torch.zeros(31)}), r"ln_out\.bias is \(31,\), not \(32,\)"),
    "no shift": (lambda t: t.pop("blocks.2.att.x_g"), r"blocks\.2\.att\.x_\*"),
    "short shift": (lambda t: t.update({"blocks.2.att.x_g": torch.zeros(3)}), r"'x_g': 3"),
    "no embedding": (lambda t: t.pop("emb.weight"), r"emb\.weight is missing"),
    "flat embedding": (lambda t: t.update({"emb.weight": torch.zeros(9)}), r"emb\.weight has shape \(9,\)"),
    "no size": (lambda t: t.pop("blocks.0.att.w1"), r"blocks\.0\.att\.w1 is missing"),
    "odd heads": (lambda t: t.update({"blocks.0.att.r_k": torch.zeros(2, 5)}), "sizes that no RWKV-7 model has"),
    "no layer": (lambda t: [t.pop(n) for n in list(t) if n.startswith("blocks.1.")], r"blocks\.1\."),
    "another model": (lambda t: (t.clear(), t.update({"wte.weight": torch.zeros(2, 2)})), r"emb\.weight is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named(tmp_path: Path, fault: str) -> None:
    tensors = native(lively())
    spoil, said = FAULTS[fault]
    spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=said) as error:
        load_rwkv7(tmp_path / "model.safetensors")
    assert "model.safetensors" in str(error.value)


class Evil:
    def __reduce__(self) -> Any:
        return (Path("stolen").touch, ())


def test_a_pth_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"emb.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_rwkv7(tmp_path / "evil.pth")
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("cut", [0, 3, 10, 23, 24 + 5, 24 + 30, 5000, -1])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    whole = cpp(lively())
    (tmp_path / "cut.bin").write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match=r"cut\.bin"):
        load_rwkv7(tmp_path / "cut.bin")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    quantized = bytearray(cpp(lively()))
    struct.pack_into("<I", quantized, 24 + 8, 7)
    (tmp_path / "quantized.bin").write_bytes(quantized)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "far.index.json").write_text(json.dumps({"weight_map": {"emb.weight": "../far.safetensors"}}))
    (tmp_path / "bad.index.json").write_text("{}")
    names = ["quantized.bin", "text.pth", "broken.safetensors", "list.pth", "far.index.json", "bad.index.json", "none"]
    for name in names:
        with pytest.raises(CheckpointError, match=re.escape(name)):
            load_rwkv7(tmp_path / name)


# ------------------------------------------------------------------------------------------- training over a stream


def stream(n_tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(40, (2, n_tokens), generator=torch.Generator().manual_seed(seed))


def gradients(model: RWKV7, tokens: Tensor, size: int) -> dict[str, Tensor]:
    """Of the summed nats, batch by batch with carried state; one document."""
    model.zero_grad()
    state, starts = model.init_state(2), torch.zeros(2, tokens.shape[1] - 1, dtype=torch.bool)
    starts[:, 0] = True
    for at in range(0, tokens.shape[1] - 1, size):
        piece = slice(at, at + size)
        nats, state = model.nats(tokens[:, :-1][:, piece], starts[:, piece], tokens[:, 1:][:, piece], state)
        nats.sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_other_parameters_end_where_a_batch_begins() -> None:
    model = lively(SMALL.model_copy(update={"n_layers": 1}))
    whole, parts = gradients(model, stream(65), 64), gradients(model, stream(65), 16)
    torch.testing.assert_close(parts["head.weight"], whole["head.weight"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(parts["blocks.0.att.value.weight"], whole["blocks.0.att.value.weight"], rtol=1e-2)


@pytest.mark.parametrize("size", [1, 16, 23])
def test_a_learned_initial_state_gets_its_whole_gradient_from_every_batch(size: int) -> None:
    # in one layer without the second token shift nothing that batches cut off depends on it: the sum must be exact
    model = lively(SMALL.model_copy(update={"n_layers": 1, "initial_state": "learned"}))
    name = "blocks.0.att.time_state"
    torch.nn.init.zeros_(model.get_parameter("blocks.0.ffn.x_k"))
    whole, parts = gradients(model, stream(65), 64)[name], gradients(model, stream(65), size)[name]
    assert whole.abs().max() > 0.01
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


def test_a_learned_initial_state_is_what_documents_begin_with() -> None:
    plain = lively()
    tuned = lively(SMALL.model_copy(update={"initial_state": "learned"}))
    own = tuned.state_dict() | plain.state_dict()
    tuned.load_state_dict(own)
    tokens = stream(60)
    assert not torch.allclose(read(tuned, tokens), read(plain, tokens), atol=1e-2)
    with torch.no_grad():
        for parameter in tuned.outline().initial:
            parameter.zero_()
    torch.testing.assert_close(read(tuned, tokens), read(plain, tokens), rtol=1e-4, atol=1e-5)
    assert plain.outline().initial == ()


def test_an_offset_hears_the_thousandth_token_as_the_first() -> None:
    heard = []
    for kind in ("learned", "offset"):
        model = lively(SMALL.model_copy(update={"n_layers": 1, "initial_state": kind}))
        with torch.no_grad():  # decays of about a half
            model.get_parameter("blocks.0.att.w0").fill_(3.0)
        tokens, starts, (offset,) = stream(1025), torch.zeros(2, 1024, dtype=torch.bool), model.outline().initial
        starts[:, 0] = True
        nats, _ = model.nats(tokens[:, :-1], starts, tokens[:, 1:], model.init_state(2))
        first, last = (torch.autograd.grad(nats[:, t].sum(), offset, retain_graph=True)[0].norm() for t in (1, 1023))
        heard.append(float(last / first))
    assert heard[0] < 1e-6
    assert heard[1] > 0.05


@pytest.mark.parametrize("kind", ["learned", "offset"])
def test_training_only_states_lowers_the_loss(kind: str) -> None:
    model = lively(SMALL.model_copy(update={"initial_state": kind}))
    states = list(model.outline().initial)
    model.requires_grad_(False)
    for parameter in states:
        parameter.requires_grad_(True)
    optimizer, pattern = torch.optim.Adam(states, lr=0.2), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]).repeat(1, 5)
    starts, costs = torch.zeros(1, 39, dtype=torch.bool), []
    starts[:, 0] = True
    for _ in range(12):
        nats, _ = model.nats(pattern[:, :-1], starts, pattern[:, 1:], model.init_state(1))
        optimizer.zero_grad()
        nats.mean().backward()
        optimizer.step()
        costs.append(nats.mean().item())
    assert costs[-1] < costs[0] - 0.5


def test_the_state_holds_only_what_it_says() -> None:
    model = lively()
    state = model.init_state(2)
    for _ in range(3):
        _, state = model(stream(50), torch.zeros(2, 50, dtype=torch.bool), state)
    numbers = sum(tensor.numel() for tensor in state.values())
    assert numbers == 2 * SMALL.n_layers * (2 * SMALL.d_model + SMALL.d_model * SMALL.d_head)
    assert sum(t.untyped_storage().nbytes() for t in state.values()) == 4 * numbers  # no view of something larger


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 33)])
def test_a_stream_of_nothing_but_starts_stays_finite(shape: tuple[int, int]) -> None:
    model = lively()
    tokens, starts = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    nats, state = model.nats(tokens, starts, tokens, model.init_state(shape[0]))
    nats.sum().backward()
    assert nats.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(nats, nats[:1, :1].expand(shape), rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast_stays_near_float32() -> None:
    model = lively()
    tokens = stream(150)
    with torch.autocast("cpu", torch.bfloat16):
        rough = read(model, tokens)
    truth = read(model, tokens)
    assert (rough.float() - truth).abs().mean() < 0.1 * truth.std()


def test_thousands_of_tokens_leave_the_state_bounded() -> None:
    model, state = lively(), None
    with torch.no_grad():
        state = model.init_state(2)
        norms = []
        for i in range(20):
            _, state = model(stream(250, seed=i), torch.zeros(2, 250, dtype=torch.bool), state)
            norms.append(max(t.norm().item() for t in state.values()))
    assert max(norms[10:]) < 2 * max(norms[:10])


# --------------------------------------------------------------------------------------------------------- settings


def test_ranks_follow_the_rule_of_the_paper() -> None:
    assert RWKV7Config(d_model=768, d_head=64).ranks == {"w": 64, "a": 64, "v": 32, "g": 128}
    assert RWKV7Config(d_model=2048, d_head=64).ranks == {"w": 128, "a": 128, "v": 64, "g": 224}
    assert RWKV7Config(d_model=64, d_head=64).ranks == {"w": 32, "a": 32, "v": 32, "g": 32}


def test_a_width_that_heads_do_not_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match="d_model=100 must be a multiple of d_head=64"):
        validate(RWKV7Config, {"d_model": 100}, "model")


ALIVE = [
    {"d_head": 32},
    {"d_ff": 48},
    {"decay_rank": 3},
    {"rate_rank": 3},
    {"value_rank": 3},
    {"gate_rank": 3},
    {"initial_state": "learned"},
    {"initial_state": "offset"},
]


@pytest.mark.parametrize("turned", ALIVE, ids=lambda options: "+".join(options))
def test_every_option_is_alive(turned: dict[str, Any]) -> None:
    plain, other = lively(), lively(SMALL.model_copy(update=turned))
    ours = plain.state_dict()
    same: State = {n: ours[n] for n, t in other.state_dict().items() if n in ours and ours[n].shape == t.shape}
    other.load_state_dict(same, strict=False)
    tokens = stream(30)
    assert not torch.allclose(read(plain, tokens), read(other, tokens), atol=1e-3)


def test_every_part_of_time_mixing_shows() -> None:
    tokens, model = stream(12), lively(SMALL.model_copy(update={"n_layers": 2}))
    base, own = read(model, tokens), {name: t.clone() for name, t in model.state_dict().items()}
    for name, tensor in own.items():
        model.load_state_dict(own | {name: tensor + 0.3 * torch.randn_like(tensor)})
        assert not torch.allclose(read(model, tokens), base, atol=1e-3), name
