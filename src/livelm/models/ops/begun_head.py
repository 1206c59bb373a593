"""What is said of the next symbol of a begun patch, and what that costs: a few numbers for each of many tokens.

On a CPU it is one compiled function there and one back; torch gathers rows of 3 D numbers for each token, and adds up
their gradients one by one.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from livelm.compiled import added, compiled, compiles
from livelm.compiled.addresses import flat
from livelm.models.ops import head
from livelm.models.ops.patches import Patches

CERTAIN = 30.0
"""Logit of a symbol that is determined, over 0 for the others: what it costs, 1e-13 nats, is 0 in float32."""
MOST_SYMBOLS = 8
"""With more of them, a matrix product pays."""


def says(
    rows: Float[Tensor, "B R D"], nodes: Float[Tensor, "N V D"], patches: Patches, targets: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T V"]]:
    """-ln p(target), and the log probabilities of all symbols, which are not to be differentiated; both float32.

    `rows`: what is known after each whole patch, the carried one first. `nodes`: a row for each symbol of each begun
    patch. Raises IndexError for a target that is no symbol.
    """
    if len(nodes) == 1 and patches.parity is None:  # patches of one symbol are never begun
        return head.says(F.embedding(patches.heard, rows.flatten(0, 1)), nodes[0], targets)
    if compiles() and fit(rows, nodes, targets):
        return _Says.apply(rows, nodes, patches, targets)  # type: ignore[return-value]
    return head.says_of(logits_of(rows, nodes, patches), targets)


def logits_of(rows: Float[Tensor, "B R D"], nodes: Float[Tensor, "N V D"], patches: Patches) -> Float[Tensor, "B T V"]:
    """Logits of the next symbol, by torch."""
    heard = F.embedding(patches.heard, rows.flatten(0, 1))
    if len(nodes) == 1:
        logits = F.linear(heard, nodes[0])
    else:
        own = F.embedding(patches.node, nodes.flatten(1)).unflatten(-1, (-1, heard.shape[-1]))
        logits = torch.einsum("btd,btvd->btv", heard, own)
    if patches.parity is None:
        return logits
    known = patches.parity[..., None]
    is_it = torch.arange(logits.shape[-1], device=known.device) == known
    return torch.where(known >= 0, CERTAIN * is_it, logits)


def fit(rows: Tensor, nodes: Tensor, targets: Tensor) -> bool:
    """Whether the compiled functions take these: float32 on the CPU, few symbols."""
    return flat(rows) and flat(nodes) and targets.is_cpu and nodes.shape[1] <= MOST_SYMBOLS


class _Says(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, nodes: Tensor, patches: Patches, targets: Tensor) -> tuple[Tensor, Tensor]:
        nats, log_probs = torch.empty(targets.shape), torch.empty(*targets.shape, nodes.shape[1])
        wanted, parity = targets.contiguous(), patches.heard[:0] if patches.parity is None else patches.parity
        at = tuple(tensor.view(-1).numpy() for tensor in (patches.heard, patches.node, parity, wanted))
        known = _flat_rows(rows), nodes.detach().numpy(), at
        if not _forward(*known, nats.view(-1).numpy(), log_probs.view(-1, nodes.shape[1]).numpy()):
            raise IndexError(f"a target is none of {nodes.shape[1]} symbols.")
        ctx.save_for_backward(rows, nodes, log_probs)
        ctx.at = at
        ctx.mark_non_differentiable(log_probs)
        return nats, log_probs

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Any, ...]:
        rows, nodes, log_probs = ctx.saved_tensors
        d_rows, d_nodes = torch.zeros_like(rows), torch.zeros_like(nodes)
        known = _flat_rows(rows), nodes.detach().numpy(), ctx.at, log_probs.view(-1, nodes.shape[1]).numpy()
        _backward(given[0].contiguous().view(-1).numpy(), *known, _flat_rows(d_rows), d_nodes.numpy())
        return d_rows, d_nodes, None, None


def _flat_rows(rows: Tensor) -> np.ndarray:
    return rows.detach().view(-1, rows.shape[-1]).numpy()


@compiled
def _forward(rows, nodes, at, nats, log_probs):  # type: ignore[no-untyped-def]
    """(N,) nats and (N, V) log probabilities. Returns false for a target that is no symbol."""
    heard, node, parity, targets = at
    n_symbols = nodes.shape[1]
    for target in targets:
        if not 0 <= target < n_symbols:
            return False
    for i in range(len(targets)):
        said = log_probs[i]
        if len(parity) and parity[i] >= 0:
            for v in range(n_symbols):
                said[v] = CERTAIN if v == parity[i] else 0.0
        else:
            for v in range(n_symbols):
                said[v] = _product(rows[heard[i]], nodes[node[i], v])
        top, total = said[0], np.float32(0.0)
        for v in range(1, n_symbols):
            top = max(top, said[v])
        for v in range(n_symbols):
            total += np.exp(said[v] - top)
        total = top + np.log(total)
        for v in range(n_symbols):
            said[v] -= total
        nats[i] = -said[targets[i]]
    return True


@compiled
def _backward(g, rows, nodes, at, log_probs, d_rows, d_nodes):  # type: ignore[no-untyped-def]
    """From (N,) g of the nats those of rows and nodes, which are zero before.

    The gradient of a logit is the probability, less 1 for the target, by that of the nats.
    """
    heard, node, parity, targets = at
    for i in range(len(targets)):
        if len(parity) and parity[i] >= 0:
            continue
        for v in range(nodes.shape[1]):
            d_logit = (np.exp(log_probs[i, v]) - np.float32(v == targets[i])) * g[i]
            _add(d_logit, nodes[node[i], v], d_rows[heard[i]])
            _add(d_logit, rows[heard[i]], d_nodes[node[i], v])


@added
def _product(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@added
def _add(factor, x, to):  # type: ignore[no-untyped-def]
    for k in range(len(x)):
        to[k] += factor * x[k]
