"""Bits as the alphabet: a reversible trunk over bytes, and a light head that predicts each bit from those before it.

Eight times as many positions must not cost 64 times the attention. So the eight bits of a byte are one patch, the trunk
reads patches only, and each bit is predicted by a logistic regression on what the trunk made of all whole bytes, one
for each beginning a byte can have (255 of them). The product of eight such predictions is any distribution over bytes
that there is: what is lost against a model that attends from bit to bit is only how much is computed per bit.

After BitTransformerLM (WCNegentropy, 2025), which attended over all bits at 9 positions per byte, kept every activation
of its reversible blocks for telemetry, and scored worse than a coin at its large size.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from livelm.compiled import compiles
from livelm.config import Settings
from livelm.errors import ConfigError
from livelm.models.bit_growth import Enlarged, Step
from livelm.models.layers import Rotation, linear, rms_norm, rotate, rotation, silent_linear
from livelm.models.ops import bit_cpu
from livelm.models.ops.attention import additive, attention, window_mask
from livelm.models.ops.begun_head import logits_of, says
from livelm.models.ops.grid import take
from livelm.models.ops.patches import Layout, Patches, begin_patches, number_patches
from livelm.models.ops.pointwise import squared_relu
from livelm.models.ops.reversible import Coupling, Seen, reversible, reversible_reference
from livelm.models.settings import HeadScale, Positive
from livelm.types import Outline, State, Tokenizer

MAX_LEAVES = 1 << 17
"""Most numbers a patch may have; each has a row in a table."""
EMPTY = -1
"""Document that rows of the cache without a patch belong to."""


class BitConfig(Settings):
    """Sizes and options of the bit model."""

    d_model: Positive = 128
    """Width of each of the two residual streams."""
    n_layers: Positive = 4
    n_heads: Positive = 4
    """Heads of queries, keys and values; each is d_model / n_heads wide."""
    d_ff: Positive | None = None
    """Width of the feed-forward layer; by default 4 d_model."""
    context: Positive = 256
    """A patch sees itself and the context - 1 patches before it, in every layer."""
    patch: Positive | None = None
    """Tokens that the trunk reads as one; by default 8 where the alphabet is bits (tokenizer `bits`), else 1."""
    parity: bool = False
    """Whether a patch ends with a parity bit (`tokenizer.parity = "even"`): it is known, so it costs nothing."""
    head_scale: HeadScale = 0.0
    backward: Literal["inverse", "stored"] = "inverse"
    """`inverse`: activations are computed again, memory does not grow with depth. `stored`: they are kept; faster."""

    @model_validator(mode="after")
    def _fit(self) -> "BitConfig":
        if self.d_model % self.n_heads or self.d_head % 2:
            raise ValueError(f"d_model={self.d_model} must be n_heads={self.n_heads} times an even head width")
        return self

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.d_ff or 4 * self.d_model

    def layout(self, n_vocabulary: int) -> Layout:
        """How tokens make patches. Raises ConfigError for more numbers than a table should have."""
        n_data = self.patch or (8 if n_vocabulary == 3 else 1)
        layout = Layout(max(n_vocabulary - 1, 2), n_data, self.parity)
        if n_data > 64 or layout.n_leaves > MAX_LEAVES:
            raise ConfigError(
                f"model.patch = {n_data} symbols out of {layout.n_digits} are {float(layout.n_digits) ** n_data:.3g} "
                f"different patches; at most {MAX_LEAVES:,} have a row each. Set tokenizer.name=bits or model.patch=1."
            )
        return layout


class Reading:
    """What the blocks need to know of the new patches."""

    def __init__(self, bias: Float[Tensor, "B 1 W S"], angles: Rotation, newest: Int[Tensor, "B C"]) -> None:
        self.bias, self.angles, self.newest = bias, angles, newest

    def keep(self, seen: Seen) -> Seen:
        """Of all keys and values those that the next patch may still see."""
        return tuple(take(tensor, self.newest) for tensor in seen)


class Block(nn.Module):
    """Attention for the first stream, a feed-forward layer for the second."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.config = c = config
        self.attention_norm = nn.RMSNorm(c.d_model, eps=1e-6)
        self.project = linear(c.d_model, 3 * c.d_model)
        self.out = silent_linear(c.d_model, c.d_model)
        self.mlp_norm = nn.RMSNorm(c.d_model, eps=1e-6)
        self.up = linear(c.d_model, c.hidden)
        self.down = silent_linear(c.hidden, c.d_model)

    def attend(
        self, x: Float[Tensor, "B W D"], keys: Tensor, values: Tensor, reading: Reading
    ) -> tuple[Float[Tensor, "B W D"], Seen]:
        """What attention over carried and new keys adds to the first stream, and all keys and values."""
        n = self.config.n_heads
        q, k, v = self.project(self.attention_norm(x)).unflatten(-1, (3 * n, -1)).split(n, dim=2)
        k = torch.cat([keys, rotate(rms_norm(k), reading.angles)], dim=1)
        v = torch.cat([values, v], dim=1)
        q = rotate(rms_norm(q), reading.angles)
        found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), reading.bias)
        return self.out(found.transpose(1, 2).flatten(2)), (k, v)

    def feed(self, x: Float[Tensor, "B W D"]) -> Float[Tensor, "B W D"]:
        """What the feed-forward layer adds to the second stream."""
        return self.down(squared_relu(self.up(self.mlp_norm(x))))

    def coupling(self, keys: Tensor, values: Tensor, reading: Reading) -> Coupling:
        """The block as `reversible` wants it."""
        attends = [*self.attention_norm.parameters(), *self.project.parameters(), *self.out.parameters()]
        feeds = [*self.mlp_norm.parameters(), *self.up.parameters(), *self.down.parameters()]
        first = partial(self.attend, keys=keys, values=values, reading=reading)
        return Coupling(first, reading.keep, self.feed, (attends, feeds))


STACKS = {"inverse": reversible, "stored": reversible_reference}


class Bit(nn.Module):
    """Next-symbol predictor over a stream of documents whose symbols come in patches."""

    Config: ClassVar[type[BitConfig]] = BitConfig

    def __init__(self, config: BitConfig, n_vocabulary: int) -> None:
        """Raises ConfigError for patches that are too long for the vocabulary."""
        super().__init__()
        self.config, self.n_vocabulary = config, n_vocabulary
        self.layout = layout = config.layout(n_vocabulary)
        self.embed = nn.Embedding(layout.n_leaves + 1, config.d_model)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        # a patch of one symbol never is begun and not whole, so there is no second row
        n_nodes = layout.n_inner + (layout.n_data > 1)
        self.nodes = nn.Parameter(torch.empty(n_nodes, n_vocabulary, config.d_model))
        nn.init.normal_(self.nodes, std=config.head_scale * config.d_model**-0.5)
        # The newest whole patch ends up to n - 1 tokens back and began n - 1 before that; each layer looks back
        # context - 1 patches from what the layer below could see.
        n = layout.n_symbols
        self.context_reach: int | None = 2 * n - 1 + config.n_layers * (config.context - 1) * n

    @property
    def grain(self) -> int:
        """Tokens of a patch."""
        return self.layout.n_symbols

    def require(self, tokenizer: Tokenizer) -> None:
        """Raise ConfigError where tokenizer and model do not mean the same by a patch."""
        parity = getattr(tokenizer, "n_symbols", 8) == 9
        if parity != self.config.parity or (parity and self.layout.n_data != 8):
            raise ConfigError(
                f"model.parity is {self.config.parity} and model.patch {self.layout.n_data}, but the tokenizer writes "
                f"bytes with{'' if parity else 'out'} a parity bit. Set model.parity={str(parity).lower()} and leave "
                "model.patch out."
            )

    def enlarged(self, what: Step) -> Enlarged:
        """A model of twice the `depth`, `width` or `context` that predicts the same."""
        return Enlarged(self, what)

    def init_state(self, n_lanes: int) -> State:
        """No patch yet: rows of the cache that belong to no document are never seen."""
        c, device, dtype = self.config, self.nodes.device, self.nodes.dtype
        state: State = begin_patches(n_lanes, self.layout, device)
        state["documents"] = torch.full((n_lanes, c.context - 1), EMPTY, dtype=torch.int64, device=device)
        state["heard"] = torch.zeros(n_lanes, c.d_model, device=device, dtype=dtype)
        for i in range(c.n_layers):
            for name in ("keys", "values"):
                shape = (n_lanes, c.context - 1, c.n_heads, c.d_head)
                state[f"{name}.{i}"] = torch.zeros(shape, device=device, dtype=dtype)
        return state

    def forward(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T V"], State]:
        """Logits of the token after each position, and the state after the last one (see `types.Model`).

        Raises IndexError for an id outside the vocabulary.
        """
        rows, patches, after = self.hidden(tokens, starts, state)
        return logits_of(rows, self.nodes, patches), after

    def hidden(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B R D"], Patches, State]:
        """What is known after each whole patch, the carried one first; the patches; and the state after the last."""
        if tokens.min() < 0 or tokens.max() >= self.n_vocabulary:
            raise IndexError(f"token ids from {tokens.min()} to {tokens.max()}; there are {self.n_vocabulary}")
        patches = number_patches(tokens, starts, state, self.layout)
        after = dict(state) | patches.after
        if not patches.leaf.shape[1]:
            return state["heard"][:, None], patches, after
        plan = bit_cpu.plan_for(self, patches.leaf, state) if compiles() else None
        rows, kept = self.trunk(patches, state) if plan is None else bit_cpu.trunk(self, plan, patches, state)
        last = take(rows.detach(), patches.heard[:, -1:])[:, 0]
        return rows, patches, after | kept | {"heard": last}

    def is_compiled(self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State) -> bool:
        """Whether `hidden` of these goes through compiled functions, were they used: see `ops.bit_cpu`."""
        patches = number_patches(tokens, starts, state, self.layout)
        return bit_cpu.plan_for(self, patches.leaf, state) is not None

    def trunk(self, patches: Patches, state: State) -> tuple[Float[Tensor, "B R D"], State]:
        """What is known after each whole patch, the carried one first, and the cache after the last."""
        c, n_kept, leaf = self.config, self.config.context - 1, patches.leaf
        kept = state["documents"]
        x = self.embed(leaf)
        bias = additive(window_mask(patches.document, kept, c.context)).to(x.dtype)
        cos, sin = rotation(patches.position.flatten(), 1, c.d_head)
        shape = (*leaf.shape, 1, c.d_head)
        angles = cos.view(shape).to(x.dtype), sin.view(shape).to(x.dtype)
        lane = torch.arange(len(leaf), device=leaf.device)[:, None] * (n_kept + leaf.shape[1])
        newest = lane + patches.n_whole[:, None] + torch.arange(n_kept, device=leaf.device)
        reading = Reading(bias, angles, newest)
        blocks: Sequence[Any] = list(self.blocks)
        couplings = [b.coupling(state[f"keys.{i}"], state[f"values.{i}"], reading) for i, b in enumerate(blocks)]
        x1, x2, seen = STACKS[c.backward](x, x, couplings)
        after = {"documents": take(torch.cat([kept, patches.document], dim=1), newest)}
        for i, (keys, values) in enumerate(seen):
            after |= {f"keys.{i}": keys, f"values.{i}": values}
        return torch.cat([state["heard"][:, None], self.norm(x1 + x2)], dim=1), after

    def nats(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], State]:
        """-ln p(target) of the token after each position, in float32, and the state after the last one."""
        nats, _, state = self.told(tokens, starts, targets, state)
        return nats, state

    def told(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"], State]:
        """What `nats` says, with the log probabilities of all symbols between, which are not to be differentiated."""
        rows, patches, state = self.hidden(tokens, starts, state)
        return *says(rows, self.nodes, patches, targets), state

    def flops_per_token(self) -> int:
        """Twice the multiply-adds of the matrix products of one token's forward pass, with a full cache.

        The mean over a patch, of which the trunk's work is done once. Norms, rotations, softmax, lookups and other
        elementwise work are not counted, nor is what backward computes again.
        """
        c, d = self.config, self.config.d_model
        of_patch = c.n_layers * (4 * d * d + 2 * d * c.hidden + 2 * c.context * d)
        return round(2 * (of_patch / self.layout.n_symbols + d * self.n_vocabulary))

    def parameter_kinds(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every trainable parameter once (see `types.Model`)."""
        kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "vector": []}
        for name, parameter in self.named_parameters():
            if name in ("embed.weight", "nodes"):
                kinds["table"].append((name, parameter))
            else:
                kinds["vector" if parameter.dim() == 1 else "matrix"].append((name, parameter))
        return kinds

    def outline(self) -> Outline:
        """Its blocks; norm and the rows of the begun bytes; every document begins with nothing (see `types.Model`)."""
        return Outline(tuple(self.blocks), (self.norm, self.nodes), ())
