"""A transformer that carries the keys and values of the last tokens from one batch to the next."""

from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from livelm.compiled import compiles
from livelm.config import Device, Settings
from livelm.kernels import kernels_of
from livelm.models.initial import InitialMemory, initial_parameters
from livelm.models.layers import (
    Rotation,
    frequencies,
    linear,
    make_norm,
    rms_norm,
    rotate,
    rotation,
    silent_linear,
)
from livelm.models.ngrams import NOTHING, NgramEmbedding
from livelm.models.ops import few_tokens_cpu
from livelm.models.ops.attention import additive, attention, window_mask
from livelm.models.ops.head import costs, says, says_of
from livelm.models.ops.native import multiplies_bfloat16, table_type
from livelm.models.ops.pointwise import squared_relu
from livelm.models.ops.token_table import TokenTable
from livelm.models.settings import HeadScale, Positive
from livelm.types import Outline, State


class TransformerConfig(Settings):
    """Sizes and options of the transformer."""

    d_model: Positive = 128
    """Width of the residual stream."""
    n_layers: Positive = 4
    n_heads: Positive = 4
    """Query heads; each is d_model / n_heads wide."""
    n_kv_heads: Positive | None = None
    """Key and value heads, shared by groups of query heads (Ainslie et al. 2023); by default one per query head."""
    d_ff: Positive | None = None
    """Width of the feed-forward layer; by default 4 d_model."""
    context: Positive = 256
    """A token sees itself and the context - 1 tokens before it, in every layer."""
    norm: Literal["rms", "layer"] = "rms"
    qk_norm: bool = True
    """Divide queries and keys by their root mean square (Henry et al. 2020)."""
    activation: Literal["relu", "relu2"] = "relu2"
    """Of the feed-forward layer; relu2 is the square of relu (So et al. 2021)."""
    mlp_bias: bool = False
    gate: bool = False
    """Multiply what attention found by a learned sigmoid gate before it is mixed in."""
    rank: Positive | None = None
    """Tuneable rank: one (d_head, rank) matrix per layer maps queries and keys of every head; even."""
    tied: bool = False
    """Use the token table as the output matrix too."""
    token_table: Literal["plain", "auto", "float32", "bfloat16"] = "plain"
    """For a vocabulary that dominates the model: keep the tied table in this type and its gradient in factors.
    `auto` becomes bfloat16 where the device multiplies it natively, else float32; a run keeps what it became."""
    head_scale: HeadScale = 0.0
    ngrams: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)] = ()
    """Orders n of the hashed n-gram embeddings, such as [2, 3, 4]; none by default. The strongest lever for bytes."""
    ngram_rows: Positive = 32_768
    """Rows of the table of each order; a row holds 2 d_model numbers."""
    initial_state: Literal["zero", "learned"] = "zero"
    """What a document begins with: nothing, or trained keys and values in each layer (`models.initial`)."""
    n_initial: Positive = 8
    """Trained keys and values of each head that a learned initial state has."""

    @model_validator(mode="after")
    def _fit(self) -> "TransformerConfig":
        if self.d_model % self.n_heads or self.d_head % 2:
            raise ValueError(f"d_model={self.d_model} must be n_heads={self.n_heads} times an even head width")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.kv_heads}")
        if self.rank is not None and self.rank % 2:
            raise ValueError(f"rank={self.rank} must be even: rotary positions turn pairs of channels")
        if self.token_table != "plain" and not self.tied:
            raise ValueError(
                f"token_table={self.token_table!r} is one table for reading and predicting: set tied = true"
            )
        if any(a >= b for a, b in pairwise(self.ngrams)):
            raise ValueError(f"ngrams={list(self.ngrams)} must be orders in rising order, each once")
        return self

    def resolved(self, device: Device = "cpu") -> Self:
        """The same with the type of the table decided for this machine."""
        if self.token_table != "auto":
            return self
        return self.model_copy(update={"token_table": str(table_type(device)).removeprefix("torch.")})

    def warnings(self, device: Device = "cpu") -> tuple[str, ...]:
        """Says when the table has a type that this machine is slow at."""
        if self.token_table == "bfloat16" and device == "cpu" and multiplies_bfloat16() is False:
            return (
                "model.token_table is bfloat16, which this processor does not multiply natively: it will take many "
                "times as long as float32. A new run with model.token_table=auto takes float32 here.",
            )
        return ()

    @property
    def d_head(self) -> int:
        """Width of a head's queries and values."""
        return self.d_model // self.n_heads

    @property
    def d_key(self) -> int:
        """Width in which queries and keys are compared."""
        return self.rank or self.d_head

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.d_ff or 4 * self.d_model


class Attention(nn.Module):
    """Causal attention over carried and new keys; queries, keys, values and gate come from one product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        n_projected = c.n_heads + 2 * c.kv_heads + (c.n_heads if c.gate else 0)
        self.project = linear(c.d_model, n_projected * c.d_head)
        self.out = silent_linear(c.n_heads * c.d_head, c.d_model)
        if c.rank is not None:
            self.compress = nn.Parameter(torch.empty(c.d_head, c.rank))
            nn.init.orthogonal_(self.compress)  # normal noise x 0.02 would start attention blind (specs: uniform maps)
        self.initial = (
            InitialMemory(c.n_heads, c.n_initial, c.d_key, c.d_head) if c.initial_state == "learned" else None
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B C G K"],
        values: Float[Tensor, "B C G E"],
        bias: Float[Tensor, "B 1 T S"],
        angles: Rotation,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B S G K"], Float[Tensor, "B S G E"]]:
        """What the block adds to the stream, and all keys and values: carried, then new."""
        c = self.config
        heads = self.project(x).unflatten(-1, (-1, c.d_head))  # (B, T, heads, d_head)
        # one cut, whose backward is one concatenation: a slice's would be zeros of full size, a copy and a sum
        cuts = (c.n_heads + c.kv_heads, c.kv_heads, c.n_heads)[: 3 if c.gate else 2]
        compared, told, *gates = heads.split(cuts, dim=2)
        if c.rank is not None:
            compared = compared @ self.compress
        if c.qk_norm:
            compared = rms_norm(compared)
        asked = compared[:, :, : c.n_heads]
        q, k = rotate(compared, angles).split((c.n_heads, c.kv_heads), dim=2)
        k, v = torch.cat([keys, k], dim=1), torch.cat([values, told], dim=1)
        found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias).transpose(1, 2)
        if self.initial is not None:
            found = found + self.initial(asked)
        found = found.flatten(2)
        for gate in gates:
            found = found * gate.flatten(2).sigmoid()
        return self.out(found), k, v


class FeedForward(nn.Module):
    """Two linear maps with a rectifier, or its square, between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.squared = config.activation == "relu2"
        self.up = linear(config.d_model, config.hidden, bias=config.mlp_bias)
        self.down = silent_linear(config.hidden, config.d_model, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """What the block adds to the stream."""
        h = self.up(x)
        return self.down(squared_relu(h) if self.squared else h.relu_())


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.d_model)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config.norm, config.d_model)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, angles: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The stream after the block, and all keys and values."""
        mixed, k, v = self.attention(self.attention_norm(x), keys, values, bias, angles)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), k, v


class Transformer(nn.Module):
    """Next-token predictor with sliding-window attention over a stream of documents."""

    Config: ClassVar[type[TransformerConfig]] = TransformerConfig
    capturable: ClassVar[bool] = True

    def __init__(self, config: TransformerConfig, n_vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.n_vocabulary = n_vocabulary
        self.embed = _embedding(config, n_vocabulary)
        self.ngrams = NgramEmbedding(config.ngrams, config.ngram_rows, config.d_model) if config.ngrams else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config.norm, config.d_model)
        self.head = None if config.tied else linear(config.d_model, n_vocabulary, scale=config.head_scale)
        # Each layer looks context - 1 positions back from what the layer below could see.
        self.context_reach: int | None = config.n_layers * (config.context - 1) + max((1, *config.ngrams))

    def init_state(self, n_lanes: int) -> State:
        """An empty cache, which grows to `context` positions: no memory is reserved, none is read unfilled."""
        c, device = self.config, self.embed.weight.device
        state: State = {
            "position": torch.zeros(n_lanes, dtype=torch.int64, device=device),
            "documents": torch.zeros(n_lanes, 0, dtype=torch.int64, device=device),
        }
        for i in range(c.n_layers):
            state[f"keys.{i}"] = torch.zeros(n_lanes, 0, c.kv_heads, c.d_key, device=device)
            state[f"values.{i}"] = torch.zeros(n_lanes, 0, c.kv_heads, c.d_head, device=device)
        if self.ngrams is not None:
            shape = (n_lanes, self.ngrams.n_back)
            state["recent"] = torch.full(shape, NOTHING, dtype=torch.int64, device=device)
        return state

    def forward(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T V"], State]:
        """Logits of the token after each position, and the state after the last one (see `types.Model`)."""
        x, state = self.hidden(tokens, starts, state)
        if isinstance(self.embed, TokenTable):
            return self.embed.logits(x), state
        return F.linear(x, self.output_rows), state

    @property
    def output_rows(self) -> Float[Tensor, "V D"]:
        """The row of each token in the output matrix."""
        return (self.head or self.embed).weight

    def hidden(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """What the head reads at each position, and the state after the last one."""
        c = self.config
        plan = few_tokens_cpu.plan_for(self, tokens, state) if compiles() else None
        if plan is not None:
            return few_tokens_cpu.hidden(self, plan, tokens, starts, state)
        few = self._kernels(tokens, state)
        if few is None:
            bias, angles, after = window(starts, state, c.context, c.d_key)
        else:
            bias, angles, after = few.window(starts, state, c.context, frequencies(c.d_key, starts.device))
        x, last = self.embed(tokens), None
        if self.ngrams is not None:
            first, last, after["recent"] = self.ngrams(state["recent"], tokens, starts)
            x = x + first
        for i, block in enumerate(self.blocks):
            through = block if few is None else partial(few.block, block)
            x, k, v = through(x, state[f"keys.{i}"], state[f"values.{i}"], bias, angles)
            after[f"keys.{i}"] = k.detach()[:, -c.context :].contiguous()
            after[f"values.{i}"] = v.detach()[:, -c.context :].contiguous()
        x = self.norm(x)
        return (x if last is None else x + last), after

    def is_compiled(self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State) -> bool:
        """Whether `hidden` of these goes through compiled functions, were they used: see `ops.few_tokens_cpu`."""
        return few_tokens_cpu.plan_for(self, tokens, state) is not None

    def _kernels(self, tokens: Int[Tensor, "B T"], state: State) -> Any | None:
        """The module that takes few tokens through all blocks by kernels, where it is used and they fit."""
        few = kernels_of("livelm.models.ops.few_tokens") if tokens.is_cuda else None
        return few if few is not None and few.fits(self, tokens, state) else None

    def nats(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], State]:
        """-ln p(target) of the token after each position, in float32, and the state after the last one."""
        if isinstance(self.embed, TokenTable):
            x, state = self.hidden(tokens, starts, state)
            return self.embed.nats(x, targets), state
        x, state = self.hidden(tokens, starts, state)
        return costs(x, self.output_rows, targets), state

    def told(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"], State]:
        """What `nats` says, with the log probabilities of all symbols between, which are not to be differentiated."""
        if isinstance(self.embed, TokenTable):
            logits, state = self.forward(tokens, starts, state)
            return *says_of(logits, targets), state
        x, state = self.hidden(tokens, starts, state)
        return *says(x, self.output_rows, targets), state

    def flops_per_token(self) -> int:
        """Twice the multiply-adds of the matrix products of one token's forward pass, with a full cache.

        Norms, rotations, softmax, lookups and other elementwise work are not counted.
        """
        c = self.config
        weights = sum(
            p.numel() for name, p in self.blocks.named_parameters() if p.dim() == 2 and "compress" not in name
        )
        compression = c.n_layers * (c.n_heads + c.kv_heads) * c.d_head * c.rank if c.rank else 0
        compared = c.n_layers * c.n_heads * c.context * (c.d_key + c.d_head)
        if c.initial_state == "learned":
            compared += c.n_layers * c.n_heads * c.n_initial * (c.d_key + c.d_head)
        return 2 * (weights + compression + compared + c.d_model * self.n_vocabulary)

    def parameter_kinds(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every trainable parameter once (see `types.Model`)."""
        kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "vector": []}
        for name, parameter in self.named_parameters():
            if name == "ngrams.table":
                kinds.setdefault("rows", []).append((name, parameter))
            elif name == "embed.weight" and isinstance(self.embed, TokenTable):
                kinds.setdefault("deferred", []).append((name, parameter))
            elif name in ("embed.weight", "head.weight"):
                kinds["table"].append((name, parameter))
            else:
                kinds["matrix" if parameter.dim() == 2 else "vector"].append((name, parameter))
        return kinds

    def outline(self) -> Outline:
        """Its blocks; norm and output matrix (see `types.Model`)."""
        return Outline(tuple(self.blocks), (self.norm, self.head or self.embed), initial_parameters(self.blocks))


def window(
    starts: Bool[Tensor, "B T"], state: State, context: int, d_key: int
) -> tuple[Float[Tensor, "B 1 T S"], Rotation, State]:
    """What is added to scores, by what queries and keys are turned, and the next batch's positions and documents."""
    n_new, kept = starts.shape[1], state["documents"]
    documents = starts.cumsum(dim=1) + (kept[:, -1:] if kept.shape[1] else 0)
    bias = additive(window_mask(documents, kept, context))
    angles = rotation(state["position"], n_new, d_key)
    after: State = {"position": state["position"] + n_new}
    after["documents"] = torch.cat([kept, documents], dim=1)[:, -context:].contiguous()
    return bias, angles, after


def _embedding(config: TransformerConfig, n_vocabulary: int) -> nn.Embedding | TokenTable:
    # A tied table scores a token's own row with std * d_model: 1 keeps the first loss at ln V even for small V.
    std = min(0.02, 1 / config.d_model) if config.tied else 0.02
    if config.token_table != "plain":
        dtype = torch.bfloat16 if config.resolved().token_table == "bfloat16" else torch.float32
        return TokenTable(n_vocabulary, config.d_model, std=std, scale=config.d_model**0.5, dtype=dtype)
    embedding = nn.Embedding(n_vocabulary, config.d_model)
    nn.init.normal_(embedding.weight, std=std)
    return embedding
