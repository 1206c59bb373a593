"""RWKV-7 "Goose" (Peng et al. 2025): a recurrent network whose whole past is one matrix per head and layer.

Parameters carry the native names of RWKV checkpoints (`blocks.0.att.w0`), so `rwkv7_checkpoints` loads published
weights. The state is carried over the whole stream; gradients end where a batch begins (truncated back-propagation).
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from livelm.compiled import compiles
from livelm.config import Settings
from livelm.models.ops import rwkv7_cpu
from livelm.models.ops.head import costs, nats_of, says, says_of
from livelm.models.ops.pointwise import squared_relu, unit
from livelm.models.ops.rwkv7 import LOWEST_LOG_DECAY, Streams, rwkv7
from livelm.models.ops.rwkv7_chunks import Layout, make_layout
from livelm.models.settings import HeadScale, Positive
from livelm.types import Outline, State

NORM_EPS, HEAD_NORM_EPS = 1e-5, 64e-5  # of the published checkpoints


class RWKV7Config(Settings):
    """Sizes of RWKV-7. Ranks that are not given follow the paper's rule for the width."""

    d_model: Positive = 128
    """Width of the residual stream."""
    n_layers: Positive = 4
    d_head: Annotated[int, Field(ge=2)] = 64
    """Width of a head; each keeps a d_head x d_head matrix. Published models have 64."""
    d_ff: Positive | None = None
    """Width of the feed-forward layer; by default 4 d_model."""
    decay_rank: Positive | None = None
    """Of the map from a token to its decays."""
    rate_rank: Positive | None = None
    """Of the map from a token to its in-context learning rates."""
    value_rank: Positive | None = None
    """Of the map from a token to how much of the first layer's values it takes."""
    gate_rank: Positive | None = None
    """Of the map from a token to the gate of what was read."""
    head_scale: HeadScale = 0.1
    initial_state: Literal["zero", "learned", "offset"] = "zero"
    """What a document begins with: nothing; a trained matrix per head (`learned`), which fades as the document goes on;
    or one that is read beside the state at every token (`offset`, after Kang et al. 2025), and so never fades."""

    @model_validator(mode="after")
    def _fit(self) -> "RWKV7Config":
        if self.d_model % self.d_head:
            raise ValueError(f"d_model={self.d_model} must be a multiple of d_head={self.d_head}")
        return self

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return self.d_model // self.d_head

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return self.d_ff or 4 * self.d_model

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each low-rank map by the letter of its parameters: w, a, v, g."""
        chosen = {"w": self.decay_rank, "a": self.rate_rank, "v": self.value_rank, "g": self.gate_rank}
        rule = {"w": 2.5, "a": 2.5, "v": 1.7, "g": 5.0}
        return {m: chosen[m] or max(32, 32 * round(rule[m] * self.d_model**0.5 / 32)) for m in rule}


def shifted(
    x: Float[Tensor, "B T C"], before: Float[Tensor, "B C"], starts: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T C"]:
    """The token before each one; zero before the first of a document."""
    past = torch.cat([before[:, None].to(x.dtype), x[:, :-1]], dim=1)
    return past.masked_fill(starts[..., None], 0.0)


class TimeMix(nn.Module):
    """Reads and writes the matrix state of each head."""

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        d, ranks = config.d_model, config.ranks
        self.x_rwkvag = nn.Parameter(torch.empty(6, d))  # how much of the token before: r, w, k, v, a, g
        self.w0, self.w1, self.w2 = _low_rank(d, ranks["w"])
        self.a0, self.a1, self.a2 = _low_rank(d, ranks["a"])
        if layer:
            self.v0, self.v1, self.v2 = _low_rank(d, ranks["v"])
        _, self.g1, self.g2 = _low_rank(d, ranks["g"])
        self.k_k, self.k_a = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.r_k = nn.Parameter(torch.empty(config.n_heads, config.d_head))
        self.receptance = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.output = nn.Linear(d, d, bias=False)
        self.ln_x = nn.GroupNorm(config.n_heads, d, eps=HEAD_NORM_EPS)
        matrices = torch.zeros(config.n_heads, config.d_head, config.d_head)
        self.time_state = nn.Parameter(matrices) if config.initial_state == "learned" else None
        self.state_offset = nn.Parameter(matrices) if config.initial_state == "offset" else None
        self._initialize()

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        past: Float[Tensor, "B T C"],
        v_first: Float[Tensor, "B T C"] | None,
        state: State,
        layout: Layout,
    ) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B T C"], State]:
        """What the block adds to the stream, the values of the first layer, and the state after the last token."""
        heads = (self.config.n_heads, self.config.d_head)
        x_r, x_w, x_k, x_v, x_a, x_g = torch.addcmul(x, past - x, self.x_rwkvag[:, None, None]).unbind(0)
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        # decays in float32 even under autocast: in bfloat16 the slow ones, whose w is next to 1, would be equal
        log_w = LOWEST_LOG_DECAY * (self.w0 + (x_w @ self.w1).tanh() @ self.w2).float().sigmoid()
        rate = (self.a0 + x_a @ self.a1 @ self.a2).sigmoid()
        gate = (x_g @ self.g1).sigmoid() @ self.g2
        first: Tensor = v if v_first is None else v_first
        if self.layer:
            v = torch.lerp(v, first, (self.v0 + x_v @ self.v1 @ self.v2).sigmoid().to(v.dtype))
        removal = unit((k * self.k_k).unflatten(-1, heads))
        k = (k * (1 + (rate - 1) * self.k_a)).unflatten(-1, heads)
        r, v, log_w, rate = (part.unflatten(-1, heads) for part in (r, v, log_w, rate))
        dtype = v.dtype
        streams = Streams(r, log_w, k.to(dtype), v, -removal.to(dtype), (removal * rate).to(dtype))
        read, state = self._recur(streams, layout, state)
        normed = self.ln_x(read.flatten(2).flatten(0, 1)).view(x.shape)
        present = ((r * k * self.r_k).sum(dim=-1, keepdim=True) * v).flatten(2)
        return self.output((normed + present) * gate), first, state

    def _recur(self, x: Streams, layout: Layout, state: State) -> tuple[Float[Tensor, "B T H N"], State]:
        """What is read from the carried matrix, and the state after the last token.

        An offset is no part of the recurrence: y = (S + offset) r, so its gradient is as large at the millionth token
        of a document as at its first. A matrix that documents begin with is, and depends linearly on it: S = rest +
        begin @ influence, where the influence is what has become of an identity since then. Both are carried, so it has
        its gradient in every batch, and what it learns shows at once; but the influence fades within a few hundred
        tokens, and with it both.
        """
        if self.time_state is None:
            read, matrix = rwkv7(x, layout, state["matrix"])
            if self.state_offset is not None:
                read = read + (x.r.transpose(1, 2) @ self.state_offset.to(x.r.dtype).mT).transpose(1, 2)
            return read, {"matrix": matrix.detach()}
        n, begin = self.config.d_head, self.time_state
        fresh = torch.eye(2 * n, n, device=begin.device).roll(n, dims=0).expand(len(begin), -1, -1)  # nothing, identity
        both = torch.cat([state["matrix"], state["influence"]], dim=2)  # rows do not mix: one recurrence carries both
        read, both = rwkv7(x._replace(v=F.pad(x.v, (0, n))), layout, both, fresh)
        matrix, influence = both.detach().split(n, dim=2)
        read = read[..., :n] + (begin.to(read.dtype) @ read[..., n:, None])[..., 0]
        return read, {"matrix": matrix.contiguous(), "influence": influence.contiguous()}

    @torch.no_grad()
    def _initialize(self) -> None:
        """Initial values of the reference implementation (specs of RWKV-LM): each channel has its own time scale."""
        c, layer = self.config, self.layer
        depth = layer / max(1, c.n_layers - 1)  # 0 .. 1
        channel = torch.arange(c.d_model)
        ratio = channel / c.d_model
        for mix, power in zip(self.x_rwkvag, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            mix.copy_(1 - ratio ** (power * (1 - layer / c.n_layers)))
        line = channel / (c.d_model - 1) - 0.5
        zigzag = (channel % c.d_head) / ((c.d_head - 1) / 2) - 1
        zigzag = zigzag * zigzag.abs()
        self.w0.copy_(-5.5 + 6 * (line + 0.5) ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * line)
        if layer:
            self.v0.copy_(0.73 - 0.4 * line)
        self.k_k.copy_(0.71 - 0.1 * line)
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        for linear, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(linear.weight, gain=gain)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.ln_x.weight, ((layer + 1) / c.n_layers) ** 0.7)


class ChannelMix(nn.Module):
    """The feed-forward layer: a squared rectifier of a mix with the token before."""

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        power = (1 - layer / config.n_layers) ** 4
        self.x_k = nn.Parameter(1 - (torch.arange(config.d_model) / config.d_model) ** power)
        self.key = nn.Linear(config.d_model, config.hidden, bias=False)
        self.value = nn.Linear(config.hidden, config.d_model, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=max(1.0, config.hidden / config.d_model) ** 0.5)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Float[Tensor, "B T C"], past: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """What the block adds to the stream."""
        return self.value(squared_relu(self.key(torch.addcmul(x, past - x, self.x_k))))


class Block(nn.Module):
    """Time mixing, then channel mixing, each behind a norm and beside the residual stream."""

    def __init__(self, config: RWKV7Config, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(config.d_model, eps=NORM_EPS)  # native checkpoints keep the embedding's norm here
        self.ln1 = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.ln2 = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.att = TimeMix(config, layer)
        self.ffn = ChannelMix(config, layer)


class RWKV7(nn.Module):
    """Next-token predictor with a state of fixed size, however long the stream."""

    Config: ClassVar[type[RWKV7Config]] = RWKV7Config
    context_reach: int | None = None

    def __init__(self, config: RWKV7Config, n_vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.n_vocabulary = n_vocabulary
        self.emb = nn.Embedding(n_vocabulary, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_out = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.head = nn.Linear(config.d_model, n_vocabulary, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.normal_(self.head.weight, std=config.head_scale * config.d_model**-0.5)

    def init_state(self, n_lanes: int) -> State:
        """The last inputs of both mixers, the matrices and what a learned start is to them, as before a document."""
        c, device = self.config, self.emb.weight.device
        state: State = {}
        for i in range(c.n_layers):
            for name in ("att", "ffn"):
                state[f"{name}_shift.{i}"] = torch.zeros(n_lanes, c.d_model, device=device)
            matrix = torch.zeros(n_lanes, c.n_heads, c.d_head, c.d_head, device=device)
            if c.initial_state == "learned":
                state[f"influence.{i}"] = matrix + torch.eye(c.d_head, device=device)
            state[f"matrix.{i}"] = matrix
        return state

    def forward(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T V"], State]:
        """Logits of the token after each position, and the state after the last one (see `types.Model`)."""
        x, state = self.hidden(tokens, starts, state)
        return self.head(x), state

    def is_compiled(self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State) -> bool:
        """Whether `hidden` of these goes through compiled functions, were they used: see `ops.rwkv7_cpu`."""
        return rwkv7_cpu.plan_for(self, tokens, state) is not None

    def hidden(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T C"], State]:
        """What the head reads at each position, and the state after the last one."""
        plan = rwkv7_cpu.plan_for(self, tokens, state) if compiles() else None
        if plan is not None:
            return rwkv7_cpu.hidden(self, plan, tokens, starts, state)
        layout = make_layout(starts)
        after: State = {}
        v_first: Tensor | None = None
        x = self.blocks[0].ln0(self.emb(tokens))  # type: ignore[operator]
        for i, block in enumerate(self.blocks):
            normed = block.ln1(x)  # type: ignore[operator]
            past = shifted(normed, state[f"att_shift.{i}"], starts)
            own = {name: state[f"{name}.{i}"] for name in ("matrix", "influence") if f"{name}.{i}" in state}
            added, v_first, own = block.att(normed, past, v_first, own, layout)  # type: ignore[operator]
            after |= {f"{name}.{i}": tensor for name, tensor in own.items()}
            after[f"att_shift.{i}"] = _last(normed)
            x = x + added
            normed = block.ln2(x)  # type: ignore[operator]
            x = x + block.ffn(normed, shifted(normed, state[f"ffn_shift.{i}"], starts))  # type: ignore[operator]
            after[f"ffn_shift.{i}"] = _last(normed)
        return self.ln_out(x), after

    def nats(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], State]:
        """-ln p(target) of the token after each position, in float32, and the state after the last one."""
        x, state = self.hidden(tokens, starts, state)
        if type(self.head) is not nn.Linear:
            return nats_of(self.head(x), targets), state
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
        if type(self.head) is not nn.Linear:
            return *says_of(self.head(x), targets), state
        return *says(x, self.head.weight, targets), state

    def is_unaltered(self) -> bool:
        """Whether every part is of the kind that this class builds: no adapter, nothing else in its place."""
        for i, block in enumerate(self.blocks):
            if not (type(block) is Block and type(block.att) is TimeMix and type(block.ffn) is ChannelMix):
                return False
            att, ffn = block.att, block.ffn
            maps = att.receptance, att.key, att.value, att.output, ffn.key, ffn.value
            norms = block.ln1, block.ln2, *([block.ln0] if i == 0 else [])
            built = all(type(part) is nn.Linear for part in maps) and all(type(part) is nn.LayerNorm for part in norms)
            if not (built and type(att.ln_x) is nn.GroupNorm):
                return False
        return type(self.emb) is nn.Embedding and type(self.ln_out) is nn.LayerNorm

    def flops_per_token(self) -> int:
        """Twice the multiply-adds of the matrix products of one token's forward pass, token by token.

        The state costs 4 multiply-adds per number of it, a learned initial state as many again and one to read it, an
        offset only the one; norms, shifts and other elementwise work are not counted.
        """
        c = self.config
        weights = sum(p.numel() for _, p in self.parameter_kinds()["matrix"])
        per_number = {"zero": 4, "learned": 9, "offset": 5}[c.initial_state]
        return 2 * (weights + per_number * c.n_layers * c.d_model * c.d_head + c.d_model * self.n_vocabulary)

    def parameter_kinds(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Every trainable parameter once (see `types.Model`); low-rank maps are matrices, initial states vectors."""
        kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "vector": []}
        for name, parameter in self.named_parameters():
            if name in ("emb.weight", "head.weight"):
                kinds["table"].append((name, parameter))
            elif parameter.dim() == 2 and not name.endswith(("x_rwkvag", "r_k")):
                kinds["matrix"].append((name, parameter))
            else:
                kinds["vector"].append((name, parameter))
        return kinds

    def outline(self) -> Outline:
        """Its blocks; norm and output matrix; the matrices (heads, value, key) that a document begins with."""
        initial = (
            parameter for name, parameter in self.named_parameters() if name.endswith((".time_state", ".state_offset"))
        )
        return Outline(tuple(self.blocks), (self.ln_out, self.head), tuple(initial))


def _last(x: Float[Tensor, "B T C"]) -> Float[Tensor, "B C"]:
    return x[:, -1].detach().float().clone()  # a view would keep all T alive until the next batch


def _low_rank(d: int, rank: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Offset (d,), first map (d, rank) of zeros and second map (rank, d): it begins as the offset alone."""
    second = nn.Parameter(torch.empty(rank, d))
    nn.init.orthogonal_(second, gain=0.1)
    return nn.Parameter(torch.empty(d)), nn.Parameter(torch.zeros(d, rank)), second
