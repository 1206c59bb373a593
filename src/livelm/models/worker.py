"""Heavy work at every k-th token only, and still every token is predicted.

Each token goes through a cheap causal mixer of its last few neighbours, which also makes its keys and values. Every
`stride`-th token of a document is a worker: it attends to the keys of all tokens before it and goes through the
feed-forward layer, and what it found is added to itself and to the tokens that follow, up to the next worker. Its role
depends on nothing but its place in the document, so keys can be cached and what is generated equals what is
teacher-forced.

After WorkerTransformer (2026), whose other positions were never predicted, whose last position was always a worker
while it was the last, and whose loss over a quarter of the positions was compared with one over all of them.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from livelm.compiled import compiles
from livelm.config import Settings
from livelm.models.initial import InitialMemory, initial_parameters
from livelm.models.layers import Rotation, linear, rms_norm, rotate, rotation, silent_linear
from livelm.models.ngrams import NOTHING, NgramEmbedding
from livelm.models.ops import worker_cpu
from livelm.models.ops.attention import additive, attention
from livelm.models.ops.causal_conv import causal_conv
from livelm.models.ops.grid import Grid, add_at, ages, take, worker_grid, worker_mask
from livelm.models.ops.head import costs, says
from livelm.models.ops.pointwise import squared_relu
from livelm.models.settings import HeadScale, Positive
from livelm.types import Outline, State


class WorkerConfig(Settings):
    """Sizes and options of the worker model."""

    d_model: Positive = 128
    """Width of the residual stream."""
    n_layers: Positive = 4
    n_heads: Positive = 4
    """Heads of queries, keys and values; each is d_model / n_heads wide."""
    d_ff: Positive | None = None
    """Width of the workers' feed-forward layer; by default 4 d_model."""
    context: Positive = 256
    """A worker sees itself and the context - 1 tokens before it, in every layer."""
    stride: Positive = 8
    """Every stride-th token of a document is a worker; 1: every token is."""
    n_taps: Annotated[int, Field(ge=2)] = 4
    """How many tokens the local mixer combines, the newest included."""
    head_scale: HeadScale = 0.0
    ngrams: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)] = ()
    """Orders n of the hashed n-gram embeddings, such as [2, 3, 4]; none by default."""
    ngram_rows: Positive = 32_768
    """Rows of the table of each order; a row holds 2 d_model numbers."""
    initial_state: Literal["zero", "learned"] = "zero"
    """What a document begins with: nothing, or trained keys and values in each layer for workers (`models.initial`)."""
    n_initial: Positive = 8
    """Trained keys and values of each head that a learned initial state has."""

    @model_validator(mode="after")
    def _fit(self) -> "WorkerConfig":
        if self.d_model % self.n_heads or self.d_head % 2:
            raise ValueError(f"d_model={self.d_model} must be n_heads={self.n_heads} times an even head width")
        if any(a >= b for a, b in pairwise(self.ngrams)):
            raise ValueError(f"ngrams={list(self.ngrams)} must be orders in rising order, each once")
        return self

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.d_ff or 4 * self.d_model


class LocalMixer(nn.Module):
    """What every token gets: a norm, a depthwise causal convolution, SiLU and one product."""

    def __init__(self, config: WorkerConfig, d_out: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.taps = nn.Parameter(torch.randn(config.n_taps, config.d_model) * config.n_taps**-0.5)
        self.project = linear(config.d_model, d_out)
        with torch.no_grad():
            self.project.weight[: config.d_model].zero_()  # what is added to the stream starts silent

    def forward(
        self, x: Float[Tensor, "B T D"], kept: Float[Tensor, "B R D"], age: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B R D"]]:
        """The product, whose first D channels are for the stream, and the inputs the next batch must look back on."""
        h, n_back = self.norm(x), kept.shape[1]
        mixed = self.project(F.silu(causal_conv(h, kept, self.taps, age)))
        return mixed, _own(torch.cat([kept, h[:, -n_back:]], dim=1)[:, -n_back:])


@dataclass(frozen=True, slots=True)
class Reading:
    """What all layers need to know of the positions of a batch."""

    grid: Grid
    bias: Float[Tensor, "B 1 W S"]
    """Which keys each worker sees."""
    angles: Rotation
    """Of every position."""
    asking: Rotation
    """Of the workers."""


class Block(nn.Module):
    """The local mixer for every token; gated attention and the feed-forward layer for workers."""

    carried = ("keys", "values", "local", "told")
    """What a layer keeps of the past: keys and values, inputs of the mixer, what the last worker told."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.local = LocalMixer(config, 3 * d)  # for the stream, keys, values
        self.attention_norm = nn.RMSNorm(d, eps=1e-6)
        self.ask = linear(d, 2 * d)  # queries, gate
        self.out = silent_linear(d, d)
        self.mlp_norm = nn.RMSNorm(d, eps=1e-6)
        self.up = linear(d, config.hidden)
        self.down = silent_linear(config.hidden, d)
        self.tell = silent_linear(d, d)
        sizes = (config.n_heads, config.n_initial, config.d_head, config.d_head)
        self.initial = InitialMemory(*sizes) if config.initial_state == "learned" else None

    def forward(self, x: Float[Tensor, "B T D"], past: State, reading: Reading) -> tuple[Float[Tensor, "B T D"], State]:
        """The stream after the block, and what is carried on."""
        c, grid = self.config, reading.grid
        mixed, local = self.local(x, past["local"], grid.age)
        x = x + mixed[..., : c.d_model]
        k, v = mixed[..., c.d_model :].unflatten(-1, (-1, c.d_head)).chunk(2, dim=2)
        k = torch.cat([past["keys"], rotate(rms_norm(k), reading.angles)], dim=1)
        v = torch.cat([past["values"], v], dim=1)
        told = past["told"][:, None]
        speakers = [told, torch.zeros_like(told)]
        if grid.place.shape[1]:  # fewer tokens than a stride may hold no worker at all
            before = take(x, grid.place)
            w = self.work(before, k, v, reading)
            x = add_at(x, grid, w - before)
            speakers.insert(1, self.tell(w))
        heard = take(torch.cat(speakers, dim=1), grid.speaker)
        after = {
            "keys": _own(k[:, -c.context :]),
            "values": _own(v[:, -c.context :]),
            "local": local,
            "told": _own(heard[:, -1]),
        }
        return x + heard, after

    def work(self, x: Float[Tensor, "B W D"], k: Tensor, v: Tensor, reading: Reading) -> Float[Tensor, "B W D"]:
        """The stream of the workers after attention and feed-forward."""
        q, gate = self.ask(self.attention_norm(x)).chunk(2, dim=-1)
        asked = rms_norm(q.unflatten(-1, (-1, self.config.d_head)))
        q = rotate(asked, reading.asking)
        found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), reading.bias).transpose(1, 2)
        if self.initial is not None:
            found = found + self.initial(asked)
        x = x + self.out(found.flatten(2) * gate.sigmoid())
        return x + self.down(squared_relu(self.up(self.mlp_norm(x))))


class Worker(nn.Module):
    """Next-token predictor in which every stride-th token of a document does the heavy work."""

    Config: ClassVar[type[WorkerConfig]] = WorkerConfig

    def __init__(self, config: WorkerConfig, n_vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.n_vocabulary = n_vocabulary
        self.embed = nn.Embedding(n_vocabulary, config.d_model)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.ngrams = NgramEmbedding(config.ngrams, config.ngram_rows, config.d_model) if config.ngrams else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.last = LocalMixer(config, config.d_model)
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.head = linear(config.d_model, n_vocabulary, scale=config.head_scale)
        # In each layer a position hears a worker stride - 1 back, who sees a key context - 1 further back, which was
        # made of n_taps tokens.
        hears = (config.stride - 1) + (config.context - 1) + (config.n_taps - 1)
        self.context_reach: int | None = config.n_layers * hears + config.n_taps - 1 + max((1, *config.ngrams))

    @property
    def grain(self) -> int:
        """From worker to worker."""
        return self.config.stride

    def init_state(self, n_lanes: int) -> State:
        """No keys yet, nothing heard, nothing to look back on."""
        c, device = self.config, self.embed.weight.device
        back = (n_lanes, c.n_taps - 1, c.d_model)
        state: State = {"age": torch.zeros(n_lanes, dtype=torch.int64, device=device)}
        for i in range(c.n_layers):
            state[f"keys.{i}"] = torch.zeros(n_lanes, 0, c.n_heads, c.d_head, device=device)
            state[f"values.{i}"] = torch.zeros(n_lanes, 0, c.n_heads, c.d_head, device=device)
            state[f"local.{i}"] = torch.zeros(back, device=device)
            state[f"told.{i}"] = torch.zeros(n_lanes, c.d_model, device=device)
        state["local.last"] = torch.zeros(back, device=device)
        if self.ngrams is not None:
            state["recent"] = torch.full((n_lanes, self.ngrams.n_back), NOTHING, dtype=torch.int64, device=device)
        return state

    def workers(self, starts: Bool[Tensor, "B T"], state: State) -> Bool[Tensor, "B T"]:
        """Which of the next positions are workers."""
        return (ages(starts, state["age"]) + 1) % self.config.stride == 0

    def forward(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T V"], State]:
        """Logits of the token after each position, and the state after the last one (see `types.Model`)."""
        x, state = self.hidden(tokens, starts, state)
        return self.head(x), state

    def is_compiled(self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State) -> bool:
        """Whether `hidden` of these goes through compiled functions, were they used: see `ops.worker_cpu`."""
        return worker_cpu.plan_for(self, tokens, state) is not None

    def hidden(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """What the head reads at each position, and the state after the last one."""
        plan = worker_cpu.plan_for(self, tokens, state) if compiles() else None
        if plan is not None:
            return worker_cpu.hidden(self, plan, tokens, starts, state)
        c, (n_lanes, n_new) = self.config, tokens.shape
        age = ages(starts, state["age"])
        grid = worker_grid(age, c.stride)
        bias = additive(worker_mask(grid, state["keys.0"].shape[1], c.context))
        # keys of other documents are never seen, so positions may begin anew with each document
        cos, sin = rotation(age.flatten(), 1, c.d_head)
        angles = cos.view(n_lanes, n_new, 1, -1), sin.view(n_lanes, n_new, 1, -1)
        reading = Reading(grid, bias, angles, (take(angles[0], grid.place), take(angles[1], grid.place)))
        after: State = {"age": age[:, -1] + 1}
        x, added = self.embed(tokens), None
        if self.ngrams is not None:
            first, added, after["recent"] = self.ngrams(state["recent"], tokens, starts)
            x = x + first
        for i, block in enumerate(self.blocks):
            x, kept = block(x, {name: state[f"{name}.{i}"] for name in Block.carried}, reading)
            after |= {f"{name}.{i}": tensor for name, tensor in kept.items()}
        mixed, after["local.last"] = self.last(x, state["local.last"], age)
        x = self.norm(x + mixed)
        return (x if added is None else x + added), after

    def nats(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], State]:
        """-ln p(target) of the token after each position, in float32, and the state after the last one."""
        x, state = self.hidden(tokens, starts, state)
        return costs(x, self.head.weight, targets), state

    def told(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"], State]:
        """What `nats` says, with the log probabilities of all symbols between, which are not to be differentiated."""
        x, state = self.hidden(tokens, starts, state)
        return *says(x, self.head.weight, targets), state

    def flops_per_token(self) -> int:
        """Twice the multiply-adds of the matrix products of one token's forward pass, with a full cache.

        The mean over one stride: a worker costs more, the others less. Norms, rotations, convolutions, softmax,
        lookups and other elementwise work are not counted.
        """
        c = self.config
        d = c.d_model
        for_all = c.n_layers * 3 * d * d + d * d + d * self.n_vocabulary
        of_worker = c.n_layers * (4 * d * d + 2 * d * c.hidden + 2 * c.context * d)
        if c.initial_state == "learned":
            of_worker += c.n_layers * 2 * c.n_initial * d
        return round(2 * (for_all + of_worker / c.stride))

    def parameter_kinds(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every trainable parameter once (see `types.Model`)."""
        kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "vector": []}
        for name, parameter in self.named_parameters():
            if name == "ngrams.table":
                kinds.setdefault("rows", []).append((name, parameter))
            elif name in ("embed.weight", "head.weight"):
                kinds["table"].append((name, parameter))
            elif parameter.dim() != 2 or name.endswith("taps"):  # taps are a gain per channel, no map between channels
                kinds["vector"].append((name, parameter))
            else:
                kinds["matrix"].append((name, parameter))
        return kinds

    def outline(self) -> Outline:
        """Its blocks; the last mixer, norm and output matrix (see `types.Model`)."""
        return Outline(tuple(self.blocks), (self.last, self.norm, self.head), initial_parameters(self.blocks))


def _own(x: Tensor) -> Tensor:
    """The values alone: a view, which `contiguous` is for a single lane, would keep the whole batch in memory."""
    return x.detach().clone(memory_format=torch.contiguous_format)
