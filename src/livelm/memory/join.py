"""A network's opinion enters bit by bit: one more layer of mixing, over what the counts said and what the network says.

The network gives the logit of each bit of a byte after the bits before it, whether it predicts bytes (then the logits
follow from sums of its probabilities) or bits. Small contexts choose the weights: how sure both are and whether they
agree, how much the counts know here, which of the two was better lately. Whether a document opens is one bit more.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from livelm.memory.compiled import called, compiled, inlined
from livelm.memory.kernel import GRADE, LEARN, MARK, MARKS, SURENESS
from livelm.memory.mixing import LEAST, add_scaled, clip, dot, squash
from livelm.memory.tables import OPINIONS, Said

INPUTS = 8
"""The network's logit, its probability less a half, a constant, the opinions of the counts, and zeros."""
N_SETS = 5
_FIRST = OPINIONS + 3
_SURE_STEPS = 8
ROWS = 1025
"""Rows of each set of weights."""
FLAG_ROW = ROWS - 1
RATE = 0.002
"""Of the weights; 0.001 gained 0.37 % in place of 0.41 over 256 KB of tinyshakespeare, 0.02 lost."""
FIRST_COUNTS, FIRST_NETWORK = 1.0, 0.0
LATELY = 1 / 24
"""How much the newest byte weighs in the comparison of late costs."""
_LEAST_BYTE = 1e-7
"""A network's probability of a byte is taken as no less than this, whatever it says."""


class Join(NamedTuple):
    """What is learned where a network joins, and room for one byte."""

    weights: NDArray[np.float32]
    """(N_SETS * ROWS, INPUTS)."""
    lead: NDArray[np.float64]
    """(1,) how many bits per byte the counts paid more than the network lately."""
    # room
    inputs: NDArray[np.float32]
    rows: NDArray[np.int64]
    logits: NDArray[np.float64]


LEARNED = ("weights", "lead")
"""What a checkpoint holds of it."""


def build_join() -> Join:
    """Weights that trust the counts first: they learn from one look."""
    weights = np.zeros((N_SETS * ROWS, INPUTS), np.float32)
    weights[:, 0], weights[:, 3] = FIRST_NETWORK, FIRST_COUNTS
    return Join(
        weights=weights,
        lead=np.zeros(1),
        inputs=np.zeros((9, INPUTS), np.float32),
        rows=np.zeros((9, N_SETS), np.int64),
        logits=np.zeros((9, N_SETS)),
    )


@inlined
def sureness(logit):
    """0 to 7: how far a logit is from a half."""
    return int(min(7.0, abs(logit) * 1.4))


@inlined
def mix(j: Join, b, prefix, network, opinions, at, known, foretold):
    """The probability that bit `b` is one; keeps in `j` what learning it will need."""
    x = j.inputs
    counts, network = clip(opinions[at, 0]), clip(network)
    x[b, 0], x[b, 1], x[b, 2] = network, (squash(network) - 0.5) * SURENESS, 0.3
    for k in range(OPINIONS):
        x[b, 3 + k] = opinions[at, k]
    x[b, 3] = counts
    sure = (sureness(counts) * _SURE_STEPS + sureness(network)) << 1 | (counts * network > 0)
    agree = 0
    if foretold >= 0 and (foretold | 256) >> (8 - b) == prefix:
        agree = 1 + ((foretold >> (7 - b)) & 1 == (network > 0))
    lately = int(max(-8.0, min(7.0, j.lead[0] * 4.0))) + 8
    j.rows[b, 0] = prefix
    j.rows[b, 1] = sure
    j.rows[b, 2] = known << 3 | b
    j.rows[b, 3] = (lately << 3 | sureness(network)) << 3 | b
    j.rows[b, 4] = (agree << 3 | sureness(counts)) << 3 | b
    return finish_mix(j, b)


@inlined
def finish_mix(j: Join, b):
    """The mean of the sets' logits, as a probability."""
    total = 0.0
    for k in range(N_SETS):
        j.rows[b, k] += k * ROWS
        j.logits[b, k] = clip(dot(j.weights, j.rows[b, k], j.inputs, b))
        total += j.logits[b, k]
    return max(LEAST, min(1 - LEAST, squash(total / N_SETS)))


@inlined
def learn_mix(j: Join, b, bit):
    """Correct the weights by what bit `b` was."""
    for k in range(N_SETS):
        error = (1.0 if bit else 0.0) - squash(j.logits[b, k])
        add_scaled(j.weights, j.rows[b, k], j.inputs, b, error * RATE)


@called
def mix_flag(j: Join, network, counts):
    """The probability that a document opens here, from two logits; kept as bit 8."""
    j.inputs[8, :] = 0
    j.inputs[8, 0], j.inputs[8, 2], j.inputs[8, 3] = max(-16.0, network), 0.3, max(-16.0, counts)
    total = 0.0
    for k in range(N_SETS):
        j.rows[8, k] = k * ROWS + FLAG_ROW
        j.logits[8, k] = dot(j.weights, j.rows[8, k], j.inputs, 8)
        total += j.logits[8, k]
    return max(1e-7, min(1 - 1e-7, squash(total / N_SETS)))


@compiled
def join(j: Join, tokens, modes, bit_logits, flag_logits, opinions, chosen, flags, counts_bits, network_bits, costs):
    """Cost in bits of each bit of each token, and of the news whether a document opens, into `costs` (n, 9).

    Learns each token before the next is asked about.

    Of the network: `bit_logits` (n, 8) along the bits of each byte, `flag_logits` (n,) that a document opens, and what
    each token cost it alone. Of the counts: what `Said` holds.
    """
    for at in range(tokens.shape[0]):
        token, mode = np.int64(tokens[at]), modes[at]
        costs[at, :] = 0.0
        if not mode & GRADE:
            continue
        if mode & MARKS:
            q = mix_flag(j, flag_logits[at], flags[at])
            costs[at, 8] = -math.log2(q if token == MARK else 1 - q)
            if mode & LEARN:
                learn_mix(j, 8, token == MARK)
        if token == MARK:
            continue
        for b in range(8):
            prefix, bit = (token | 256) >> (8 - b), (token >> (7 - b)) & 1
            p = mix(j, b, prefix, bit_logits[at, b], opinions, at * 8 + b, chosen[at, 0], chosen[at, 1])
            costs[at, b] = -math.log2(p if bit else 1 - p)
        if mode & LEARN:
            for b in range(8):
                learn_mix(j, b, (token >> (7 - b)) & 1)
            lead = max(-8.0, min(8.0, counts_bits[at] - network_bits[at]))
            j.lead[0] += (lead - j.lead[0]) * LATELY


@compiled
def join_tree(j: Join, node_logits, flag_logit, nodes, chosen, flag, tree):
    """The mixture's probability of every node of the tree of bits into `tree` (512,), and that a document opens at 0.

    `node_logits` (256,): the network's logit at each inner node; `nodes`, `chosen`, `flag`: of `Said`. Learns nothing.
    """
    tree[0] = mix_flag(j, flag_logit, flag)
    tree[1] = 1 - tree[0]
    for b in range(8):
        for prefix in range(1 << b, 2 << b):
            p = mix(j, b, prefix, node_logits[prefix], nodes, prefix, chosen[0, 0], chosen[0, 1])
            tree[2 * prefix], tree[2 * prefix + 1] = tree[prefix] * (1 - p), tree[prefix] * p


@called
def plant(tree, log_probs, at):
    """Sum a network's distribution over the tree of bits: tree[n] is the probability of all bytes under node n."""
    for byte in range(256):
        p = math.exp(min(0.0, log_probs[at, byte]))
        tree[256 + byte] = p if p > _LEAST_BYTE else _LEAST_BYTE  # so too where it is not a number
    for node in range(255, 0, -1):
        tree[node] = tree[2 * node] + tree[2 * node + 1]


@compiled
def bits_of_bytes(log_probs, tokens, tree, bit_logits):
    """(n, 8) the logit of each bit along each byte, given the bits before it, from (n, 256) log probabilities."""
    for at in range(tokens.shape[0]):
        if tokens[at] < MARK:
            plant(tree, log_probs, at)
            for b in range(8):
                prefix = (np.int64(tokens[at]) | 256) >> (8 - b)
                bit_logits[at, b] = math.log(tree[2 * prefix + 1] / tree[2 * prefix])


@compiled
def nodes_of_bytes(log_probs, tree, node_logits):
    """(256,) the logit at every inner node, from (1, 256) log probabilities."""
    plant(tree, log_probs, 0)
    for prefix in range(1, 256):
        node_logits[prefix] = math.log(tree[2 * prefix + 1] / tree[2 * prefix])


def logits_of_marks(log_probs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) a network's logit that a document opens, from (n,) natural logarithms; bounded, whatever they are."""
    p = np.nan_to_num(np.exp(log_probs.astype(np.float64)), nan=0.0).clip(1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def costs_of_counts(said: Said, tokens: NDArray[np.int64], modes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 9) as `join` says them, but of the counts alone: eight bits, and the news whether a document opens."""
    bits = np.unpackbits(tokens.clip(max=MARK - 1).astype(np.uint8)[:, None], axis=1)
    ones = np.column_stack([bits, tokens == MARK]).astype(bool)
    logits = np.column_stack([said.opinions[:, 0].reshape(-1, 8), said.flags])
    asked = np.repeat((modes & GRADE != 0) & (tokens != MARK), 8).reshape(-1, 8)
    asked = np.column_stack([asked, modes & MARKS != 0])
    return np.where(asked, np.logaddexp(0.0, np.where(ones, -logits, logits)) / math.log(2), 0.0)


def join_reference(
    tokens: NDArray[np.int64], modes: NDArray[np.int64], log_probs: NDArray[np.float32], said: Said
) -> NDArray[np.float64]:
    """(n,) bits as a fresh `Join` would say for a network over bytes: the slow twin, plain sums in double precision.

    `log_probs` (n, 257) natural logarithms of the network.
    """
    twin = _Twin()
    return np.array([twin.cost(int(tokens[i]), int(modes[i]), log_probs[i], said, i) for i in range(len(tokens))])


class _Twin:
    def __init__(self) -> None:
        first = np.zeros(INPUTS)
        first[0], first[3] = FIRST_NETWORK, FIRST_COUNTS
        self.first, self.weights = first, dict[tuple[int, ...], NDArray[np.float64]]()
        self.lead = 0.0

    def cost(self, token: int, mode: int, log_probs: NDArray[np.float32], said: Said, at: int) -> float:
        if not mode & GRADE:
            return 0.0
        steps, cost = [], 0.0
        p = np.exp(log_probs.astype(np.float64))
        if mode & MARKS:
            x = np.zeros(INPUTS)
            x[0], x[2], x[3] = max(-16, math.log(p[MARK] / (1 - p[MARK]))), 0.3, max(-16, said.flags[at])
            keys = [(k, -1) for k in range(N_SETS)]
            logits = [float(self.row(key) @ x) for key in keys]
            q = min(1 - 1e-7, max(1e-7, squash(sum(logits) / N_SETS)))
            cost -= math.log2(q if token == MARK else 1 - q)
            if mode & LEARN:
                self.learn([(keys, x, logits, token == MARK)])
        if token == MARK:
            return cost
        leaves = np.maximum(p[:MARK], _LEAST_BYTE)
        for b in range(8):
            bit, width = token >> 7 - b & 1, 1 << 7 - b
            middle = ((token >> 8 - b << 1) + 1) * width
            network = math.log(leaves[middle : middle + width].sum() / leaves[middle - width : middle].sum())
            keys, x = self.ask(b, token, network, said, at)
            logits = [clip(float(self.row(key) @ x)) for key in keys]
            one = max(LEAST, min(1 - LEAST, squash(sum(logits) / N_SETS)))
            cost -= math.log2(one if bit else 1 - one)
            steps.append((keys, x, logits, bit))
        if mode & LEARN:
            self.learn(steps)
            alone = -float(log_probs[token]) / math.log(2)
            self.lead += (max(-8, min(8, said.bits[at] - alone)) - self.lead) * LATELY
        return cost

    def ask(self, b: int, token: int, network: float, said: Said, at: int) -> tuple[list[tuple[int, ...]], Any]:
        opinions, (known, foretold) = said.opinions[at * 8 + b].astype(float), said.chosen[at].tolist()
        prefix, counts, network = (token | 256) >> 8 - b, clip(opinions[0]), clip(network)
        x = np.zeros(INPUTS)
        x[:3] = network, (squash(network) - 0.5) * SURENESS, 0.3
        x[3:_FIRST] = opinions
        x[3] = counts
        agree = 0
        if foretold >= 0 and (foretold | 256) >> 8 - b == prefix:
            agree = 1 + ((foretold >> 7 - b & 1) == (network > 0))
        sure = sureness(counts), sureness(network)
        lately = int(max(-8, min(7, self.lead * 4)))
        keys = [
            (0, prefix),
            (1, *sure, counts * network > 0),
            (2, known, b),
            (3, lately, sure[1], b),
            (4, agree, sure[0], b),
        ]
        return keys, x

    def row(self, key: tuple[int, ...]) -> NDArray[np.float64]:
        return self.weights.setdefault(key, self.first.copy())

    def learn(self, steps: list[tuple[list[tuple[int, ...]], Any, list[float], Any]]) -> None:
        for keys, x, logits, bit in steps:
            for key, logit in zip(keys, logits, strict=True):
                self.weights[key] += x * (float(bit) - squash(logit)) * RATE
