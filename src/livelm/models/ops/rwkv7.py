"""The recurrence of RWKV-7 (Peng et al. 2025): token by token, and in chunks of matrix products; both restart anywhere.

A head keeps a matrix S (row = value channel, column = key channel; flash-linear-attention keeps its transpose):

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t' + v_t k_t'        y_t = S_t r_t

With P_t the product of w up to t, S_t / P_t changes only by products of vectors, so a chunk is one triangular system:

    u_t = S_{t-1} a_t = S_0 (P_{t-1} a_t) + sum over i < t of (u_i b_i' + v_i k_i') (P_{t-1} / P_i) a_t

which is solved for all chunks at once with S_0 as an unknown; what is left of the loop is one product per chunk,
S <- S transition + addition.
"""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 32
"""Tokens solved at once. 32 tokens let P fall to exp(-0.61 * 32) = 4e-9 and 1/P rise to 3e8: far from the limits of
float32 and of bfloat16, which has the same exponents, so no decay needs to be clamped."""
LOWEST_LOG_DECAY = -0.606531
"""Of one token, -exp(-1/2): the model's decays are exp(LOWEST_LOG_DECAY * sigmoid(...))."""


class Streams(NamedTuple):
    """What the recurrence reads at each token, per head."""

    r: Float[Tensor, "B T H N"]
    """What is asked of the state."""
    log_w: Float[Tensor, "B T H N"]
    """Logarithm of the decay, between LOWEST_LOG_DECAY and 0, best in float32."""
    k: Float[Tensor, "B T H N"]
    v: Float[Tensor, "B T H M"]
    """M = N but where more rows than a head's own are carried along."""
    a: Float[Tensor, "B T H N"]
    """Minus the removal key, of length 1."""
    b: Float[Tensor, "B T H N"]
    """The removal key times the in-context learning rate."""


class Layout(NamedTuple):
    """How a batch is cut into C chunks of L tokens, and which of them belong together; the same for every layer."""

    starts: Bool[Tensor, "B T"]
    begins: Bool[Tensor, "B 1 C L 1"]
    """Starts again, by chunk."""
    apart: Bool[Tensor, "B 1 C 2L 2L"]
    """False where a token (column: through b, through k) reaches another (row: through a, through r): it is earlier
    and of the same document; what is asked of the state sees the present token too."""
    carried: Float[Tensor, "B 1 C L 1"]
    """1 where the token's document began before the chunk, 0 elsewhere."""
    last: Float[Tensor, "B 1 C L 1"]
    """1 where the token belongs to the document with which the chunk ends, 0 elsewhere."""


def make_layout(starts: Bool[Tensor, "B T"], chunk: int = CHUNK) -> Layout:
    """Cut T tokens into equal chunks of at most `chunk`; the last is padded with tokens that change nothing."""
    n_lanes, n_tokens = starts.shape
    n_chunks = -(-n_tokens // chunk)
    length = -(-n_tokens // n_chunks)
    padded = F.pad(starts, (0, n_chunks * length - n_tokens)).view(n_lanes, n_chunks, length)
    document = padded.cumsum(dim=2)
    earlier = torch.ones(length, length, dtype=torch.bool, device=starts.device).tril()
    reach = torch.cat([earlier.tril(-1), earlier]).repeat(1, 2)  # (2L, 2L)
    same = (document[..., :, None] == document[..., None, :]).repeat(1, 1, 2, 2)
    return Layout(
        starts,
        padded[:, None, ..., None],
        ~(same & reach)[:, None],
        (document == 0).float()[:, None, ..., None],
        (document == document[..., -1:]).float()[:, None, ..., None],
    )


def rwkv7(
    x: Streams,
    layout: Layout,
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """What is read from the state at every token, and the state after the last, in the fastest way there is here.

    A document that starts in the batch begins with the state `initial` (None: zero). States are float32; half
    precision on CUDA runs on the kernels of flash-linear-attention, where that is installed.
    """
    if x.r.shape[1] == 1:
        return rwkv7_recurrent(x, layout.starts, state, initial)
    if x.r.is_cuda and x.r.dtype in (torch.bfloat16, torch.float16):  # the kernels do not take float32
        kernel = _kernel()
        if kernel is not None:
            return rwkv7_packed(kernel, x, layout.starts, state, initial)
    return rwkv7_chunked(x, layout, state, initial)


def rwkv7_recurrent(
    x: Streams,
    starts: Bool[Tensor, "B T"],
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """The recurrence as it is written above: the truth, and the fastest way for one token."""
    r, log_w, k, v, a, b = (part.float() for part in x)
    w = log_w.exp()[..., None, :]
    begin = torch.zeros_like(state[0]) if initial is None else initial.float()
    state = state.float()
    read = []
    for t in range(r.shape[1]):
        state = torch.where(starts[:, t, None, None, None], begin, state)
        removed = (state @ a[:, t, ..., None])[..., 0]
        columns = torch.stack([removed, v[:, t]], dim=-1)
        state = state * w[:, t] + columns @ torch.stack([b[:, t], k[:, t]], dim=-2)
        read.append((state @ r[:, t, ..., None])[..., 0])
    return torch.stack(read, dim=1).to(x.v.dtype), state


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def rwkv7_chunked(
    x: Streams,
    layout: Layout,
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """What `rwkv7_recurrent` computes, with matrix products over chunks, in float32."""
    n_tokens, n_channels = x.r.shape[1], x.r.shape[-1]
    length = layout.carried.shape[3]
    r, log_w, k, v, a, b = (_by_chunk(part, layout) for part in x)  # (B, H, C, L, N)
    log_p = log_w.cumsum(dim=3)
    if initial is not None:  # decay counts from the start of the document, if that lies in the chunk
        before = torch.where(layout.begins, log_p - log_w, 0.0)
        log_p = log_p - before.cummin(dim=3).values  # log_p only falls, so the latest start has the least
    asked_a, asked_r = a * (log_p - log_w).exp(), r * log_p.exp()
    grown, p_end = (-log_p).exp(), log_p[..., -1:, :].exp()
    given_b, given_k = b * grown, k * grown
    remains = p_end * layout.last
    left_b, left_k = given_b * remains, given_k * remains  # what is left of each at the chunk's end
    reaches = torch.cat([asked_a, asked_r], dim=3) @ torch.cat([given_b, given_k], dim=3).mT
    through_b, through_k = reaches.masked_fill(layout.apart, 0.0).split(length, dim=4)
    (a_through_b, r_through_b), (a_through_k, r_through_k) = through_b.split(length, dim=3), through_k.split(length, 3)
    # u = solved_state S_0' + solved, side by side: what is made of both is made in one product
    both = _Solve.apply(a_through_b, torch.cat([asked_a, a_through_k @ v], dim=-1))
    moved, addition = (both.mT @ left_b).split([n_channels, v.shape[-1]], dim=3)
    asked_state, read = (r_through_b @ both).split([n_channels, v.shape[-1]], dim=4)
    asked_state, read = asked_r + asked_state, read + r_through_k @ v
    addition = addition + v.mT @ left_k
    through = layout.carried[..., -1:, :]  # 1 where no document starts in the chunk
    if initial is not None:
        begin = initial.float()[:, None]
        addition = addition + (1 - through) * (begin * p_end + begin @ moved)
        read = read + ((1 - layout.carried) * asked_state) @ begin.mT
    entering, state = _Scan.apply(state.float(), moved * through, p_end * through, addition)
    read = read + (layout.carried * asked_state) @ entering.mT
    read = read.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :n_tokens]
    return read.to(x.v.dtype), state


def rwkv7_packed(
    kernel: Any,
    x: Streams,
    starts: Bool[Tensor, "B T"],
    state: Float[Tensor, "B H M N"],
    initial: Float[Tensor, "H M N"] | None = None,
) -> tuple[Float[Tensor, "B T H M"], Float[Tensor, "B H M N"]]:
    """The same by `fla.ops.generalized_delta_rule.chunk_dplr_delta_rule`: every document is a sequence of its own."""
    n_lanes, n_tokens = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    first = begins.flatten().nonzero()[:, 0]  # one wait for the device, as the number of sequences is a shape
    lane = first // n_tokens
    zero = torch.zeros_like(state[:1]) if initial is None else initial.float()[None]
    entering = torch.where(starts.flatten()[first][:, None, None, None], zero, state.float()[lane])
    read, leaving = kernel(
        q=x.r.flatten(0, 1)[None],
        k=x.k.flatten(0, 1)[None],
        v=x.v.flatten(0, 1)[None],
        a=x.a.flatten(0, 1)[None],
        b=x.b.flatten(0, 1)[None],
        gk=x.log_w.flatten(0, 1)[None],
        scale=1.0,
        initial_state=entering.mT.contiguous(),  # its states are [key, value]
        output_final_state=True,
        cu_seqlens=F.pad(first, (0, 1), value=n_lanes * n_tokens),
    )
    final = torch.searchsorted(lane, torch.arange(n_lanes, device=lane.device), right=True) - 1
    return read[0].unflatten(0, (n_lanes, n_tokens)), leaving[final].mT.contiguous()


def _by_chunk(part: Float[Tensor, "B T H N"], layout: Layout) -> Float[Tensor, "B H C L N"]:
    n_chunks, length = layout.carried.shape[2:4]
    n_more = n_chunks * length - part.shape[1]
    part = F.pad(part.float(), (0, 0, 0, 0, 0, n_more)) if n_more else part.float()
    return part.unflatten(1, (n_chunks, length)).permute(0, 3, 1, 2, 4)


class _Solve(torch.autograd.Function):
    """(I - A)^-1 B for strictly lower triangular A (..., L, L) and B (..., L, K).

    By substitution, because powers of the matrix cancel badly where keys repeat; and by way of the inverse, because
    products are several times as fast as substitution and backward needs it again: dB = (I - A)^-T dX, dA = dB X'.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, right: Tensor) -> Tensor:
        identity = torch.eye(lower.shape[-1], device=lower.device, dtype=lower.dtype).expand_as(lower)
        inverse = torch.linalg.solve_triangular(-lower, identity, upper=False, unitriangular=True)
        solved = inverse @ right
        ctx.save_for_backward(inverse, solved)
        return solved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        inverse, solved = ctx.saved_tensors
        right = inverse.mT @ grads[0]
        return right @ solved.mT, right  # what of it lies on the diagonal and above, the mask takes away


class _Scan(torch.autograd.Function):
    """S_{c+1} = S_c (diag(decay_c) + moved_c) + addition_c: the states that enter the chunks, and the last one.

    state (B, H, M, N), moved (B, H, C, N, N), decay (B, H, C, 1, N), addition (B, H, C, M, N). Backward is one product
    per chunk, as forward is, and one for all transitions.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, moved: Tensor, decay: Tensor, addition: Tensor) -> tuple[Tensor, Tensor]:
        n_lanes, n_heads, n_chunks = moved.shape[:3]
        transition = moved.clone(memory_format=torch.contiguous_format)
        transition.diagonal(dim1=-2, dim2=-1).add_(decay[..., 0, :])
        transition = transition.flatten(0, 1)
        states = state.new_empty(n_chunks + 1, n_lanes * n_heads, *state.shape[2:])
        states[0] = state.flatten(0, 1)
        adds = addition.flatten(0, 1)
        for c in range(n_chunks):
            torch.baddbmm(adds[:, c], states[c], transition[:, c], out=states[c + 1])
        ctx.save_for_backward(transition, states)
        ctx.shape = (n_lanes, n_heads)
        return _by_lane(states[:-1], ctx.shape), states[-1].unflatten(0, ctx.shape).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        transition, states = ctx.saved_tensors
        entering = grads[0].flatten(0, 1)
        back = torch.empty_like(states)
        back[-1] = grads[1].flatten(0, 1)
        for c in range(len(back) - 2, -1, -1):
            torch.baddbmm(entering[:, c], back[c + 1], transition[:, c].mT, out=back[c])
        moved = _by_lane(states[:-1].mT @ back[1:], ctx.shape)
        decay = moved.diagonal(dim1=-2, dim2=-1)[..., None, :]
        return back[0].unflatten(0, ctx.shape), moved, decay, _by_lane(back[1:], ctx.shape)


def _by_lane(x: Float[Tensor, "C BH M N"], shape: tuple[int, int]) -> Float[Tensor, "B H C M N"]:
    return x.transpose(0, 1).unflatten(0, shape)


@cache
def _kernel() -> Any | None:
    """The kernel for CUDA, or None where flash-linear-attention is not installed; it takes seconds to import."""
    try:
        return import_module("fla.ops.generalized_delta_rule").chunk_dplr_delta_rule
    except ImportError:
        return None
