"""The recurrence of RWKV-7 in chunks of L tokens, with derivatives written by hand (see `ops.rwkv7`).

With P_t the product of w up to t, S_t / P_t changes only by products of vectors, so a chunk is one triangular system:

    u_t = S_{t-1} a_t = S_0 (P_{t-1} a_t) + sum over i < t of (u_i b_i' + v_i k_i') (P_{t-1} / P_i) a_t

It is solved for all chunks at once but for S_0; the loop over chunks adds what S_0 is to u, and makes S_L. A tensor of
(C, B, H, 2, L, ...) has for every chunk the rows of a and b, then those of r and k:

    asked   a and r, times the decay since the chunk or their document began
    given   b and k, over that decay; `left`: times what of it is left at the chunk's end
    told    u and v
    reach   asked given', as far as one token reaches another

Autograd would copy and keep every step between them; by hand an update of 512 tokens takes a fifth less.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 32
"""Tokens solved at once. 32 tokens let P fall to exp(-0.61 * 32) = 4e-9 and 1/P rise to 3e8: far from the limits of
float32 and of bfloat16, which has the same exponents, so no decay needs to be clamped."""


class Layout(NamedTuple):
    """How a batch is cut into C chunks of L tokens, and which of them belong together; the same for every layer."""

    starts: Bool[Tensor, "B T"]
    within: Float[Tensor, "BC L L"]
    """1 where the token of the column is of the row's document and not later; lane by lane, chunk by chunk."""
    apart: Bool[Tensor, "C B 1 2L 2L"]
    """False where a token (column: through b, through k) reaches another (row: through a, through r): it is earlier
    and of the same document; what is asked of the state sees the present token too."""
    carried: Float[Tensor, "C B 1 L 1"]
    """1 where the token's document began before the chunk, 0 elsewhere."""
    last: Float[Tensor, "C B 1 L 1"]
    """1 where the token belongs to the document with which the chunk ends, 0 elsewhere."""

    @property
    def sizes(self) -> tuple[int, int]:
        """C and L."""
        return self.carried.shape[0], self.carried.shape[3]

    @property
    def through(self) -> Float[Tensor, "C B 1 1 1"]:
        """1 where no document starts in the chunk, 0 elsewhere."""
        return self.carried[..., -1:, :]


def make_layout(starts: Bool[Tensor, "B T"], chunk: int = CHUNK) -> Layout:
    """Cut T tokens into equal chunks of at most `chunk`; the last is padded with tokens that change nothing."""
    n_lanes, n_tokens = starts.shape
    n_chunks = -(-n_tokens // chunk)
    length = -(-n_tokens // n_chunks)
    padded = F.pad(starts, (0, n_chunks * length - n_tokens)).view(n_lanes, n_chunks, length)
    document = padded.cumsum(dim=2)
    same = document[..., :, None] == document[..., None, :]
    within = same.tril()
    reach = torch.cat([same.tril(-1), within], dim=2).repeat(1, 1, 1, 2)
    by_chunk = document.transpose(0, 1)[:, :, None, :, None]
    return Layout(
        starts,
        within.float().flatten(0, 1),
        ~reach.transpose(0, 1)[:, :, None],
        (by_chunk == 0).float(),
        (by_chunk == by_chunk[..., -1:, :]).float(),
    )


class _Kept(NamedTuple):
    """What backward needs of forward; the first seven are (B, C, L, H, N), the others (C, B, H, ...)."""

    r: Tensor
    k: Tensor
    a: Tensor
    b: Tensor
    p: Tensor
    p_before: Tensor
    grown: Tensor
    asked: Tensor
    given: Tensor
    told: Tensor
    left: Tensor
    remains: Tensor
    of_state: Tensor
    reach: Tensor
    inverse: Tensor
    moved: Tensor
    through: Tensor
    states: Tensor
    begin: Tensor | None
    added: Tensor | None


class Chunked(torch.autograd.Function):
    """apply(layout, state (B, H, M, N), begin (H, M, N) or None, *Streams in float32, of whole chunks)."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, state: Tensor, begin: Tensor | None, *x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C L, H, M) what is read from the state at every token, and the state after the last."""
        n_chunks, length = layout.sizes
        r, log_w, k, v, a, b = (part.unflatten(1, (n_chunks, length)) for part in x)
        n_lanes, n_heads, n = len(r), *r.shape[3:]
        log_p = torch.bmm(layout.within, log_w.reshape(-1, length, n_heads * n)).view(log_w.shape)
        p_before, p = (log_p - log_w).exp_(), log_p.exp_()
        grown = p.reciprocal()
        asked, given = r.new_empty(2, n_chunks, n_lanes, n_heads, 2, length, n)
        torch.mul(a, p_before, out=_by_token(asked, 0))
        torch.mul(r, p, out=_by_token(asked, 1))
        torch.mul(b, grown, out=_by_token(given, 0))
        torch.mul(k, grown, out=_by_token(given, 1))
        told = r.new_empty(n_chunks, n_lanes, n_heads, 2, length, v.shape[-1])
        _by_token(told, 1).copy_(v)
        p_end = p[:, :, -1, :, None].transpose(0, 1)  # (C, B, H, 1, N)
        through, remains = p_end * layout.carried[..., -1:, :], p_end * layout.last
        left = given * remains[:, :, :, None]
        of_state = asked * layout.carried[:, :, :, None]
        reach = _product(_rows(asked), _rows(given).mT).masked_fill_(layout.apart, 0.0)
        inverse = _inverse(reach[..., :length, :length])
        known = _product(reach[..., :length, length:], told[:, :, :, 1])
        added = None
        if begin is not None:
            known += (asked - of_state)[:, :, :, 0] @ begin.mT
            added = (p_end - through) * begin
        moved = _product(inverse, of_state[:, :, :, 0])
        states = _walk(state, through, moved, _product(inverse, known), told, left, added)
        read = _product(reach[..., length:, :], _rows(told))
        read += _product(of_state[:, :, :, 1], states[:-1].mT)
        if begin is not None:
            read += (asked - of_state)[:, :, :, 1] @ begin.mT
        kept = _Kept(
            *(r, k, a, b, p, p_before, grown, asked, given, told, left, remains, of_state),
            *(reach, inverse, moved, through, states, begin, added),
        )
        ctx.save_for_backward(*kept)
        ctx.layout = layout
        return read.permute(1, 0, 3, 2, 4).flatten(1, 2), states[-1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all but the layout."""
        (d_read, d_state), f, layout = gradients, _Kept(*ctx.saved_tensors), ctx.layout
        n_chunks, length = layout.sizes
        heard = torch.empty_like(f.told)  # gradients of the right side of the system, and of what is read
        _by_token(heard, 1).copy_(d_read.unflatten(1, (n_chunks, length)))
        of_read = heard[:, :, :, 1]
        d_told = _product(f.reach[..., length:, :].mT, of_read).view_as(f.told)
        d_states = _walk_back(d_state, f, d_told, _product(of_read.mT, f.of_state[:, :, :, 1]))
        heard[:, :, :, 0] = _product(f.inverse.mT, d_told[:, :, :, 0])
        d_v = d_told[:, :, :, 1] + _product(f.reach[..., :length, length:].mT, heard[:, :, :, 0])
        d_reach = _product(_rows(heard), _rows(f.told).mT).masked_fill_(layout.apart, 0.0)
        d_left = _product(_rows(f.told), d_states[1:]).view_as(f.left)
        d_end = (d_left * f.left).sum(dim=(3, 4)) + (d_states[1:] * f.states[:-1]).sum(dim=3) * f.through[..., 0, :]
        d_asked = _product(_rows(heard), f.states[:-1]).view_as(f.asked).mul_(layout.carried[:, :, :, None])
        d_begin = None
        if f.begin is not None and f.added is not None:
            fresh = 1 - layout.carried[:, :, :, None]
            d_asked += fresh * (_rows(heard) @ f.begin).view_as(f.asked)
            d_end += (d_states[1:] * f.added).sum(dim=3)
            d_begin = (_rows(heard).mT @ _rows(f.asked - f.of_state)).sum(dim=(0, 1))
            p_end = f.p[:, :, -1, :, None].transpose(0, 1)
            d_begin += (d_states[1:] * (p_end - f.through)).sum(dim=(0, 1))
        d_asked += _product(d_reach, _rows(f.given)).view_as(f.asked)
        d_given = _product(d_reach.mT, _rows(f.asked)).view_as(f.given).addcmul_(d_left, f.remains[:, :, :, None])
        d_a, d_r = _by_token(d_asked, 0) * f.p_before, _by_token(d_asked, 1) * f.p
        d_b, d_k = _by_token(d_given, 0) * f.grown, _by_token(d_given, 1) * f.grown
        before = d_a * f.a  # all that the logarithm of P hears before the token's own decay
        d_log_p = (before + d_r * f.r).addcmul_(d_b, f.b, value=-1).addcmul_(d_k, f.k, value=-1)
        d_log_p[:, :, -1] += d_end.transpose(0, 1)
        d_log_w = torch.bmm(layout.within.mT, d_log_p.reshape(len(layout.within), length, -1)).view_as(before) - before
        by_token = d_r, d_log_w, d_k, d_v.permute(1, 0, 3, 2, 4), d_a, d_b
        return None, d_states[0], d_begin, *(part.flatten(1, 2) for part in by_token)


def _walk(
    state: Tensor, through: Tensor, moved: Tensor, known: Tensor, told: Tensor, left: Tensor, added: Tensor | None
) -> Float[Tensor, "C1 B H M N"]:
    """The states that enter the chunks, and the last one; u = known + moved state is written into `told`."""
    states = state.new_empty(len(told) + 1, *state.shape)
    states[0] = state
    rows = _rows(told)
    parts = (states[:-1].mT, states[1:], known, moved, told[:, :, :, 0], rows.mT, _rows(left))
    for c, (before, after, u, m, own, told_c, left_c) in enumerate(_by_chunk(*parts)):
        own.copy_(u.baddbmm_(m, before))
        torch.mul(states[c], through[c], out=states[c + 1])
        if added is not None:
            states[c + 1] += added[c]
        after.baddbmm_(told_c, left_c)
    return states


def _walk_back(
    d_state: Tensor, f: _Kept, d_told: Float[Tensor, "C B H 2 L M"], of_reads: Float[Tensor, "C B H M N"]
) -> Float[Tensor, "C1 B H M N"]:
    """Gradients of the states of `_walk`, of which the reads' part is given; those of u and v are added in `d_told`."""
    back = torch.cat([of_reads, d_state[None]])
    parts = (back[:-1], back[1:].mT, _rows(d_told), d_told[:, :, :, 0].mT, _rows(f.left), f.moved)
    for c, (before, after, d_rows, d_u, left, moved) in reversed(list(enumerate(_by_chunk(*parts)))):
        d_rows.baddbmm_(left, after)
        back[c].addcmul_(back[c + 1], f.through[c])
        before.baddbmm_(d_u, moved)
    return back


def _by_chunk(*parts: Float[Tensor, "C B H I J"]) -> Iterator[tuple[Tensor, ...]]:
    """(B H, I, J) of each, chunk by chunk: views."""
    return zip(*(part.flatten(1, 2).unbind() for part in parts), strict=True)


def _inverse(lower: Float[Tensor, "*G L L"]) -> Float[Tensor, "*G L L"]:
    """(I - A)^-1 of a strictly lower triangular A: by substitution, as powers of A cancel badly where keys repeat."""
    identity = torch.eye(lower.shape[-1], device=lower.device).expand_as(lower)
    return torch.linalg.solve_triangular(-lower, identity, upper=False, unitriangular=True)


def _by_token(x: Float[Tensor, "C B H 2 L N"], which: int) -> Float[Tensor, "B C L H N"]:
    """One half of the rows, in the order of the stream: a view."""
    return x[:, :, :, which].permute(1, 0, 3, 2, 4)


def _rows(x: Float[Tensor, "C B H 2 L N"]) -> Float[Tensor, "C B H 2L N"]:
    return x.flatten(3, 4)


def _product(x: Float[Tensor, "C B H I J"], y: Float[Tensor, "C B H J K"]) -> Float[Tensor, "C B H I K"]:
    """x y, by `bmm` at once: `matmul` copies what is not contiguous as a whole."""
    return torch.bmm(x.flatten(0, 2), y.flatten(0, 2)).unflatten(0, x.shape[:3])
