"""Flat blocks around shared blocks that run in loops: depth that costs time but no parameters.

After the Crawler Transformer (parameter-golf #1579): 3 flat and 2 shared blocks visited twice are 7 layers deep. Its
ten additions to the plain transformer are fields here; bench/looped.py measures each. By default only those are on
that were measured to pay: the skips (LOG, 25 November).
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
from livelm.models import looped_compiled
from livelm.models.initial import InitialMemory, initial_parameters
from livelm.models.layers import Rotation, linear, make_norm, rms_norm, rotate, rotation, silent_linear
from livelm.models.looped_inputs import SMEARS, BigramEmbedding, ValueEmbedding
from livelm.models.ngrams import NOTHING, NgramEmbedding
from livelm.models.ops.attention import additive, attention, window_mask
from livelm.models.ops.exclusive import exclude_own
from livelm.models.ops.head import costs, nats_of, says, says_of
from livelm.models.ops.pointwise import squared_relu
from livelm.models.ops.previous import previous
from livelm.models.settings import HeadScale, Positive
from livelm.types import Outline, State

Count = Annotated[int, Field(ge=0)]


class LoopedConfig(Settings):
    """Sizes and switches of the looped transformer. "Layers" are counted over the virtual depth, loops unrolled."""

    d_model: Positive = 96
    """Width of the residual stream."""
    n_before: Count = 1
    """Flat blocks before the loop."""
    n_shared: Positive = 2
    """Shared blocks: all of them run in every loop."""
    n_loops: Positive = 2
    """How often the shared blocks run; time and memory grow with it, parameters do not. 1: a flat transformer."""
    n_after: Count = 2
    """Flat blocks after the loop."""
    n_heads: Positive = 4
    """Query heads; each is d_model / n_heads wide."""
    n_kv_heads: Positive | None = None
    """Key and value heads, shared by groups of query heads (Ainslie et al. 2023); by default one per query head."""
    d_ff: Positive | None = None
    """Width of the feed-forward layer; by default 4 d_model."""
    context: Positive = 256
    """A token sees itself and the context - 1 tokens before it, in every layer."""
    tied: bool = False
    """Use the token table as the output matrix too."""
    head_scale: HeadScale = 0.0
    loop_embedding: bool = False
    """Add a learned vector at the start of each loop, so that shared blocks can tell the loops apart."""
    skips: bool = True
    """U-Net: what the first half of the layers wrote is added before those of the second half, last one first."""
    residual_mix: bool = False
    """Before each block, mix the stream with what the first block read, channel by channel."""
    branch_gain: bool = False
    """Learn a gain per channel for what attention, and what the feed-forward layer, adds to the stream."""
    query_gain: Annotated[float, Field(ge=0, le=100)] = 0.0
    """First value of a learned gain of each head's queries (published: 1.5); 0: no gain."""
    n_exclusive: Count = 0
    """In this many last layers (or all), take a token's own value out of what attention found (XSA); 0: in none."""
    n_valued: Count = 0
    """In this many last layers (or all), add a learned vector per token to its value; 0: in none."""
    d_valued: Positive = 128
    """Width of the table of those vectors, before the projection to the width of the values."""
    smear: Literal["none", "channel", "token"] = "none"
    """Blend with the position before: half and half at first, by channel; or nothing at first, gated by token."""
    logit_cap: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Bound logits softly: cap * tanh(logit / cap); 0: no bound."""
    bigram_rows: Annotated[int, Field(ge=0)] = 0
    """Rows of a hashed table of token pairs (2 or more), projected to d_model; 0: no such table."""
    d_bigram: Positive = 128
    """Width of that table."""
    ngrams: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)] = ()
    """Orders n of hashed n-gram embeddings as wide as the stream, as `transformer` has them; none by default."""
    ngram_rows: Positive = 32_768
    """Rows of the table of each order; a row holds 2 d_model numbers."""
    initial_state: Literal["zero", "learned"] = "zero"
    """What a document begins with: nothing, or trained keys and values in each block (`models.initial`)."""
    n_initial: Positive = 8
    """Trained keys and values of each head that a learned initial state has."""

    @model_validator(mode="after")
    def _fit(self) -> "LoopedConfig":
        if self.d_model % self.n_heads or self.d_head % 2:
            raise ValueError(f"d_model={self.d_model} must be n_heads={self.n_heads} times an even head width")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.kv_heads}")
        if self.bigram_rows == 1:
            raise ValueError("bigram_rows=1 leaves no row for pairs: one row is for the first token of a document")
        if any(a >= b for a, b in pairwise(self.ngrams)):
            raise ValueError(f"ngrams={list(self.ngrams)} must be orders in rising order, each once")
        return self

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def visits(self) -> tuple[int, ...]:
        """Which block each layer of the virtual depth is."""
        first_after = self.n_before + self.n_shared
        loop = tuple(range(self.n_before, first_after))
        return (*range(self.n_before), *loop * self.n_loops, *range(first_after, first_after + self.n_after))

    @property
    def n_skips(self) -> int:
        """Skip connections: one for each layer of the first half."""
        return len(self.visits) // 2 if self.skips else 0


@dataclass(frozen=True, slots=True)
class Visit:
    """What one visit of a block reads besides the stream."""

    keys: Float[Tensor, "B C G K"]
    """Carried keys of this layer (each visit of a shared block has its own)."""
    values: Float[Tensor, "B C G K"]
    bias: Float[Tensor, "B 1 T S"]
    angles: Rotation
    valued: Float[Tensor, "B T G K"] | None
    """What to add to the new values."""
    exclusive: bool
    """Whether a token's own value is taken out of what attention finds."""


class Attention(nn.Module):
    """Causal attention over carried and new keys; queries, keys and values come from one product."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        self.config = c = config
        self.project = linear(c.d_model, (c.n_heads + 2 * c.kv_heads) * c.d_head)
        self.out = silent_linear(c.d_model, c.d_model)
        self.query_gain = nn.Parameter(torch.full((c.n_heads, 1), c.query_gain)) if c.query_gain else None
        sizes = (c.n_heads, c.n_initial, c.d_head, c.d_head)
        self.initial = InitialMemory(*sizes) if c.initial_state == "learned" else None

    def forward(
        self, x: Float[Tensor, "B T D"], visit: Visit
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B S G K"], Float[Tensor, "B S G K"]]:
        """What the block adds to the stream, and all keys and values: carried, then new."""
        c = self.config
        heads = self.project(x).unflatten(-1, (-1, c.d_head))  # (B, T, heads, d_head)
        compared, own = heads.split([c.n_heads + c.kv_heads, c.kv_heads], dim=2)
        compared = rms_norm(compared)
        asked = compared[:, :, : c.n_heads]
        compared = rotate(compared, visit.angles)
        q, k = compared.split([c.n_heads, c.kv_heads], dim=2)
        if self.query_gain is not None:
            q = q * self.query_gain
        if visit.valued is not None:
            own = own + visit.valued
        k, v = torch.cat([visit.keys, k], dim=1), torch.cat([visit.values, own], dim=1)
        found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visit.bias).transpose(1, 2)
        if visit.exclusive:
            found = exclude_own(found, own)
        if self.initial is not None:
            found = found + self.initial(asked)
        return self.out(found.flatten(2)), k, v


class Block(nn.Module):
    """Attention, then a feed-forward layer with squared rectifier; both read the stream divided by its rms."""

    def __init__(self, config: LoopedConfig) -> None:
        super().__init__()
        d = config.d_model
        self.attention = Attention(config)
        self.up, self.down = linear(d, config.d_ff or 4 * d), silent_linear(config.d_ff or 4 * d, d)
        self.mix = nn.Parameter(torch.stack([torch.ones(d), torch.zeros(d)])) if config.residual_mix else None
        self.gain = nn.Parameter(torch.ones(2, d)) if config.branch_gain else None

    def forward(
        self, x: Float[Tensor, "B T D"], first: Float[Tensor, "B T D"], visit: Visit
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The stream after the block, and all keys and values; `first` is what the first block read."""
        if self.mix is not None:
            x = torch.addcmul(x * self.mix[0], first, self.mix[1])
        mixed, k, v = self.attention(rms_norm(x), visit)
        x = self._add(x, mixed, 0)
        return self._add(x, self.down(squared_relu(self.up(rms_norm(x)))), 1), k, v

    def _add(self, x: Tensor, branch: Tensor, which: Literal[0, 1]) -> Tensor:
        return x + branch if self.gain is None else torch.addcmul(x, branch, self.gain[which])


class Looped(nn.Module):
    """Next-token predictor whose middle blocks run in loops, with sliding-window attention over a stream."""

    Config: ClassVar[type[LoopedConfig]] = LoopedConfig

    def __init__(self, config: LoopedConfig, n_vocabulary: int) -> None:
        super().__init__()
        self.config = c = config
        self.n_vocabulary = n_vocabulary
        depth, d = len(c.visits), c.d_model
        # A tied table scores a token's own row with std * d_model: 1 keeps the first loss at ln V even for small V.
        self.embed = nn.Embedding(n_vocabulary, d)
        nn.init.normal_(self.embed.weight, std=min(0.02, 1 / d))
        self.ngrams = NgramEmbedding(c.ngrams, c.ngram_rows, d) if c.ngrams else None
        self.bigram = BigramEmbedding(c.bigram_rows, c.d_bigram, d) if c.bigram_rows else None
        self.smear = None if c.smear == "none" else SMEARS[c.smear](d)
        value_sizes = (c.d_valued, min(c.n_valued, depth), c.kv_heads, c.d_head)
        self.valued = ValueEmbedding(n_vocabulary, *value_sizes) if c.n_valued else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_before + c.n_shared + c.n_after))
        self.loops = nn.Parameter(torch.empty(c.n_loops, d)) if c.loop_embedding else None
        if self.loops is not None:
            nn.init.orthogonal_(self.loops, gain=0.01)
        self.skips = nn.Parameter(torch.ones(c.n_skips, d)) if c.n_skips else None
        self.norm = make_norm("rms", d)  # its gain lets logits grow: a memorised pattern cost half as much
        self.head = None if c.tied else linear(d, n_vocabulary, scale=c.head_scale)
        n_read = max((1, *c.ngrams, 2 if self.bigram else 1)) + (self.smear is not None)
        # Each layer looks context - 1 positions back from what the layer below could see.
        self.context_reach: int | None = depth * (c.context - 1) + n_read

    def init_state(self, n_lanes: int) -> State:
        """An empty cache for each layer, which grows to `context` positions."""
        c, device = self.config, self.embed.weight.device
        state: State = {
            "position": torch.zeros(n_lanes, dtype=torch.int64, device=device),
            "documents": torch.zeros(n_lanes, 0, dtype=torch.int64, device=device),
        }
        for i in range(len(c.visits)):
            state[f"keys.{i}"] = torch.zeros(n_lanes, 0, c.kv_heads, c.d_head, device=device)
            state[f"values.{i}"] = torch.zeros(n_lanes, 0, c.kv_heads, c.d_head, device=device)
        if self.ngrams is not None:
            state["recent"] = torch.full((n_lanes, self.ngrams.n_back), NOTHING, device=device)
        if self.bigram is not None:
            state["token"] = torch.full((n_lanes,), NOTHING, device=device)
        if self.smear is not None:
            state["embedded"] = torch.zeros(n_lanes, c.d_model, device=device)
        return state

    def forward(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T V"], State]:
        """Logits of the token after each position, and the state after the last one (see `types.Model`)."""
        x, after = self.hidden(tokens, starts, state)
        logits, cap = F.linear(x, (self.head or self.embed).weight), self.config.logit_cap
        return (logits if cap == 0 else cap * torch.tanh(logits / cap)), after

    def hidden(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """What the head reads at each position, and the state after the last one."""
        x, last, after = self._read(tokens, starts, state)
        x = self.norm(self._run(x, tokens, starts, state, after))
        return (x if last is None else x + last), after

    def is_compiled(self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State) -> bool:
        """Whether the blocks of such a pass are compiled functions, were they used: see `looped_compiled`."""
        return looped_compiled.through(self, tokens, starts, state) is not None

    def _read(self, tokens: Tensor, starts: Tensor, state: State) -> tuple[Tensor, Tensor | None, State]:
        """What the first block reads, what the head reads besides the stream, and the state of reading."""
        after: State = {}
        x, last = self.embed(tokens), None
        if self.ngrams is not None:
            first, last, after["recent"] = self.ngrams(state["recent"], tokens, starts)
            x = x + first
        if self.bigram is not None:
            x = x + self.bigram(tokens, previous(tokens, state["token"], starts, NOTHING))
            after["token"] = tokens[:, -1].clone()
        x = rms_norm(x)
        if self.smear is not None:
            after["embedded"] = x[:, -1].detach().clone()
            x = self.smear(x, previous(x, state["embedded"], starts, 0.0))
        return x, last, after

    def _run(self, x: Tensor, tokens: Tensor, starts: Tensor, state: State, after: State) -> Tensor:
        """The stream after the last layer; `after` gets the keys and values of every layer."""
        c, n_new, first, written = self.config, tokens.shape[1], x, []
        depth, kept = len(c.visits), state["documents"]
        documents = starts.cumsum(dim=1) + (kept[:, -1:] if kept.shape[1] else 0)
        after["position"] = state["position"] + n_new
        after["documents"] = torch.cat([kept, documents], dim=1)[:, -c.context :].contiguous()
        step = looped_compiled.through(self, tokens, starts, state) if compiles() else None
        step = step or self._through(tokens, documents, state)
        for i in range(depth):
            x = self._enter(x, i)
            if self.skips is not None and i >= c.n_skips and written:
                x = torch.addcmul(x, written.pop(), self.skips[i - c.n_skips])
            x, k, v = step(i, x, first)
            after[f"keys.{i}"] = k.detach()[:, -c.context :].contiguous()
            after[f"values.{i}"] = v.detach()[:, -c.context :].contiguous()
            if i < c.n_skips:
                written.append(x)
        return x

    def _through(self, tokens: Tensor, documents: Tensor, state: State) -> looped_compiled.Through:
        """How to go through the layers by torch."""
        c, depth = self.config, len(self.config.visits)
        bias = additive(window_mask(documents, state["documents"], c.context))
        angles = rotation(state["position"], tokens.shape[1], c.d_head)
        valued = [] if self.valued is None else self.valued(tokens)
        valued = [*[None] * (depth - len(valued)), *valued]

        def by_torch(layer: int, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            past, exclusive = (state[f"keys.{layer}"], state[f"values.{layer}"]), layer >= depth - c.n_exclusive
            return self.blocks[c.visits[layer]](x, first, Visit(*past, bias, angles, valued[layer], exclusive))

        return by_torch

    def _enter(self, x: Tensor, layer: int) -> Tensor:
        """Add the vector of the loop, where one begins at this layer."""
        loop, within = divmod(layer - self.config.n_before, self.config.n_shared)
        begins = within == 0 and 0 <= loop < self.config.n_loops
        return x + self.loops[loop] if self.loops is not None and begins else x

    def nats(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], State]:
        """-ln p(target) of the token after each position, in float32, and the state after the last one."""
        if self.config.logit_cap:
            logits, state = self.forward(tokens, starts, state)
            return nats_of(logits, targets), state
        x, state = self.hidden(tokens, starts, state)
        return costs(x, (self.head or self.embed).weight, targets), state

    def told(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"], State]:
        """What `nats` says, with the log probabilities of all symbols between, which are not to be differentiated."""
        if self.config.logit_cap:
            logits, state = self.forward(tokens, starts, state)
            return *says_of(logits, targets), state
        x, state = self.hidden(tokens, starts, state)
        return *says(x, (self.head or self.embed).weight, targets), state

    def flops_per_token(self) -> int:
        """Twice the multiply-adds of the matrix products of one token's forward pass, with a full cache.

        A shared block counts once per loop. Norms, gates, softmax, lookups and other elementwise work do not count.
        """
        c = self.config
        d, kv = c.d_model, c.kv_heads * c.d_head
        block = 2 * d * d + 2 * d * kv + 2 * d * (c.d_ff or 4 * d) + 2 * d * c.context
        if c.initial_state == "learned":
            block += 2 * c.n_initial * d
        bigram = c.d_bigram * d if c.bigram_rows else 0
        valued = c.d_valued * kv if c.n_valued else 0
        return 2 * (len(c.visits) * block + bigram + valued + d * self.n_vocabulary)

    def parameter_kinds(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every trainable parameter once (see `types.Model`); gains, gates, mixes and loop vectors are vectors."""
        kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "vector": []}
        matrices = ("project.weight", "out.weight", "up.weight", "down.weight")
        for name, parameter in self.named_parameters():
            if name in ("ngrams.table", "bigram.table"):
                kinds.setdefault("rows", []).append((name, parameter))
            elif name in ("embed.weight", "head.weight", "valued.table"):
                kinds["table"].append((name, parameter))
            else:
                kinds["matrix" if name.endswith(matrices) else "vector"].append((name, parameter))
        return kinds

    def outline(self) -> Outline:
        """Its blocks, a shared one once; norm and output matrix (see `types.Model`)."""
        return Outline(tuple(self.blocks), (self.norm, self.head or self.embed), initial_parameters(self.blocks))
