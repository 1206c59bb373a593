"""A network's opinion enters bit by bit: one more layer of mixing, over what every context and the network says.

The network gives the logit of each bit of a byte after the bits before it, whether it predicts bytes (then the logits
follow from sums of its probabilities) or bits. Its mixers begin as the counts' own verdict and learn, beside the
network's, what to add or take of each context where a network is there: most of what it knows some context knew too.
Small contexts choose the weights: how sure both are and whether they agree, how much the counts know here, which of the
two was better lately, which byte the network expects, what was read last. Whether a document opens is one bit more.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from livelm.compiled import called, compiled, inlined
from livelm.memory.kernel import GRADE, LEARN, MARK, MARKS, SURENESS
from livelm.memory.mixing import FIRST_BYTES, LEAST, add_scaled, clip, dot, falling, squash
from livelm.memory.tables import Said, whole_vectors
from livelm.types import LN_2

OWN = 5
"""Inputs before those of the contexts: the network's logit, its probability less a half, a constant, the logit of the
counts, and that of their mixers."""
COUNTS = 3
CONTEXT_SCALE = 0.55
"""Of the contexts' inputs: such a scale is a rate of 0.3 times that of the others."""
SET_ROWS = (256, 128, 1024, 1024, 192, 192, 2056, 2048, 4096, 1024)
"""Rows of each set of weights; what chooses the row is in `choose`."""
N_SETS = len(SET_ROWS)
ROWS = sum(SET_ROWS) + 1
FLAG_ROW = ROWS - 1
RATE, RATE_FIRST = 0.001, 0.01
"""Of the weights, and what is added at first. Over 520 KB of tinyshakespeare twice of both lost 0.13 % of the bits,
three times the second 0.16 %, none of it 0.02 to 0.06 %."""
FLAG_RATE = 0.002
LATELY = 1 / 24
"""How much the newest byte weighs in the comparison of late costs."""
_LEAST_BYTE = 1e-7
"""A network's probability of a byte is taken as no less than this, whatever it says."""
_FIRST_OF_SET = tuple(sum(SET_ROWS[:k]) for k in range(N_SETS))


class Join(NamedTuple):
    """What is learned where a network joins, and room for one byte."""

    weights: NDArray[np.float32]
    """(ROWS, inputs)."""
    lead: NDArray[np.float64]
    """(2,) how many bits per byte the counts paid more than the network lately; how many bytes were learned."""
    # room
    inputs: NDArray[np.float32]
    rows: NDArray[np.int64]
    logits: NDArray[np.float64]


LEARNED = ("weights", "lead")
"""What a checkpoint holds of it."""


class Expected(NamedTuple):
    """What a network says of n bytes as wholes."""

    top: NDArray[np.int64]
    """(n,) the byte it thinks most probable, or -1 where it does not say."""
    sure: NDArray[np.int64]
    """(n,) 0 to 7: how probable it thinks that byte."""


def build_join(n_inputs: int) -> Join:
    """Weights that trust the counts first: they learn from one look. `n_inputs`: of the counts' mixers."""
    width = whole_vectors(OWN + n_inputs)
    weights = np.zeros((ROWS, width), np.float32)
    weights[:, COUNTS] = 1.0
    return Join(
        weights=weights,
        lead=np.zeros(2),
        inputs=np.zeros((9, width), np.float32),
        rows=np.zeros((9, N_SETS), np.int64),
        logits=np.zeros((9, N_SETS)),
    )


class Heard(NamedTuple):
    """What `join` reads of what a network says of n tokens."""

    bit_logits: NDArray[np.float64]
    """(n, 8) of each bit along each byte, given the bits before it; of a mark nothing is filled in."""
    flag_logits: NDArray[np.float64]
    """(n,) that a document opens."""
    bits: NDArray[np.float64]
    """(n,) what each token cost it alone, 0 where not graded."""
    expected: Expected


def build_heard(n: int) -> Heard:
    """Room for n tokens."""
    return Heard(np.empty((n, 8)), np.empty(n), np.empty(n), Expected(np.empty(n, np.int64), np.empty(n, np.int64)))


def expect_nothing(n: int) -> Expected:
    """Of a network that predicts bits."""
    return Expected(np.full(n, -1), np.zeros(n, np.int64))


@inlined
def sureness(logit):
    """0 to 7: how far a logit is from a half."""
    return int(min(7.0, abs(logit) * 1.4))


@inlined
def points(byte, b, prefix):
    """1 or 2: what bit `b` of `byte` is; 0 if its first bits are not those of `prefix`, or there is none."""
    return 1 + ((byte >> (7 - b)) & 1) if byte >= 0 and (byte | 256) >> (8 - b) == prefix else 0


@inlined
def choose(j: Join, b, prefix, network, counts, chosen, top, sure):
    """The row of each set of weights."""
    known, foretold = chosen[0], points(chosen[1], b, prefix)
    both = (sureness(counts) << 3 | sureness(network)) << 1 | (counts * network > 0)
    agree = 0 if foretold == 0 else 1 + ((foretold == 2) == (network > 0))
    lately = int(max(-8.0, min(7.0, j.lead[0] * 4.0))) + 8
    pointed = points(top, b, prefix)
    rows = j.rows
    rows[b, 0] = prefix
    rows[b, 1] = both
    rows[b, 2] = known << 3 | b
    rows[b, 3] = (lately << 3 | sureness(network)) << 3 | b
    rows[b, 4] = (agree << 3 | sureness(counts)) << 3 | b
    rows[b, 5] = (pointed << 3 | sure) << 3 | b
    rows[b, 6] = (top if pointed else 256) << 3 | b
    rows[b, 7] = chosen[2] << 3 | b
    rows[b, 8] = chosen[3] << 3 | b
    rows[b, 9] = chosen[4] << 3 | b
    for k in range(N_SETS):
        rows[b, k] += _FIRST_OF_SET[k]


@inlined
def mix(j: Join, b, prefix, network, opinions, inputs, at, chosen, top, sure):
    """The probability that bit `b` is one; keeps in `j` what learning it will need."""
    x = j.inputs
    counts, network = clip(opinions[at, 0]), clip(network)
    x[b, 0], x[b, 1], x[b, 2] = network, (squash(network) - 0.5) * SURENESS, 0.3
    x[b, 3], x[b, 4] = counts, opinions[at, 1]
    for i in range(inputs.shape[1]):
        x[b, OWN + i] = inputs[at, i] * np.float32(CONTEXT_SCALE)
    choose(j, b, prefix, network, counts, chosen, top, sure)
    total = 0.0
    for k in range(N_SETS):
        j.logits[b, k] = clip(dot(j.weights, j.rows[b, k], x, b))
        total += j.logits[b, k]
    return max(LEAST, min(1 - LEAST, squash(total / N_SETS)))


@inlined
def learn_mix(j: Join, b, bit):
    """Correct the weights by what bit `b` was."""
    rate = falling(RATE, RATE_FIRST, j.lead[1])
    for k in range(N_SETS):
        error = (1.0 if bit else 0.0) - squash(j.logits[b, k])
        add_scaled(j.weights, j.rows[b, k], j.inputs, b, error * rate)


@called
def mix_flag(j: Join, network, counts):
    """The probability that a document opens here, from two logits; kept as bit 8."""
    j.inputs[8, :] = 0
    j.inputs[8, 0], j.inputs[8, 2], j.inputs[8, COUNTS] = max(-16.0, network), 0.3, max(-16.0, counts)
    j.logits[8, 0] = dot(j.weights, FLAG_ROW, j.inputs, 8)
    return max(1e-7, min(1 - 1e-7, squash(j.logits[8, 0])))


@inlined
def learn_flag(j: Join, opened):
    """Correct the weights of bit 8."""
    add_scaled(j.weights, FLAG_ROW, j.inputs, 8, ((1.0 if opened else 0.0) - squash(j.logits[8, 0])) * FLAG_RATE)


@compiled
def join(j: Join, tokens, modes, bit_logits, flag_logits, network_bits, expected: Expected, said: Said, costs):
    """Cost in bits of each bit of each token, and of the news whether a document opens, into `costs` (n, 9).

    Learns each token before the next is asked about.

    Of the network: `bit_logits` (n, 8) along the bits of each byte, `flag_logits` (n,) that a document opens, what each
    token cost it alone, and what it expected.
    """
    for at in range(tokens.shape[0]):
        token, mode = np.int64(tokens[at]), modes[at]
        costs[at, :] = 0.0
        if not mode & GRADE:
            continue
        if mode & MARKS:
            q = mix_flag(j, flag_logits[at], said.flags[at])
            costs[at, 8] = -math.log2(q if token == MARK else 1 - q)
            if mode & LEARN:
                learn_flag(j, token == MARK)
        if token == MARK:
            continue
        for b in range(8):
            prefix, bit = (token | 256) >> (8 - b), (token >> (7 - b)) & 1
            network, row = bit_logits[at, b], at * 8 + b
            top, sure = expected.top[at], expected.sure[at]
            p = mix(j, b, prefix, network, said.opinions, said.inputs, row, said.chosen[at], top, sure)
            costs[at, b] = -math.log2(p if bit else 1 - p)
        if mode & LEARN:
            for b in range(8):
                learn_mix(j, b, (token >> (7 - b)) & 1)
            lead = max(-8.0, min(8.0, said.bits[at] - network_bits[at]))
            j.lead[0] += (lead - j.lead[0]) * LATELY
            j.lead[1] += 1


@compiled
def join_tree(j: Join, node_logits, flag_logit, expected: Expected, said: Said):
    """The mixture's probability of every node of the tree of bits into `said.tree`, and that a document opens at 0.

    `node_logits` (256,): the network's logit at each inner node. Learns nothing.
    """
    tree = said.tree
    tree[0] = mix_flag(j, flag_logit, said.flags[0])
    tree[1] = 1 - tree[0]
    for b in range(8):
        for prefix in range(1 << b, 2 << b):
            network, top, sure = node_logits[prefix], expected.top[0], expected.sure[0]
            p = mix(j, b, prefix, network, said.nodes, said.node_inputs, prefix, said.chosen[0], top, sure)
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
def hear(log_probs, tokens, modes, tree, heard: Heard):
    """Fill `heard` with what a network over bytes says, of its (n, 257) natural logarithms. `tree`: room for 512.

    What is not a number, and what costs infinitely much, costs 8 bits.
    """
    for at in range(tokens.shape[0]):
        heard.flag_logits[at] = logit_of_mark(log_probs[at, MARK])
        heard.expected.top[at], heard.expected.sure[at] = expect(log_probs, at)
        cost = -np.float64(log_probs[at, tokens[at]]) / LN_2 if modes[at] & GRADE else 0.0
        heard.bits[at] = cost if math.isfinite(cost) else 8.0
        if tokens[at] < MARK:
            plant(tree, log_probs, at)
            for b in range(8):
                prefix = (np.int64(tokens[at]) | 256) >> (8 - b)
                heard.bit_logits[at, b] = math.log(tree[2 * prefix + 1] / tree[2 * prefix])


@called
def expect(log_probs, at):
    """The byte that is thought most probable, and how sure, 0 to 7; some byte where there are logarithms of none."""
    top = 0
    for byte in range(1, MARK):
        if not log_probs[at, byte] <= log_probs[at, top]:  # so too past what is not a number
            top = byte
    best = np.float64(log_probs[at, top])
    return top, 0 if math.isnan(best) else min(7, int(math.exp(max(-9.0, min(0.0, best))) * 8))


@inlined
def logit_of_mark(log_prob):
    """As `logits_of_marks`, of one."""
    p = math.exp(min(0.0, np.float64(log_prob))) if not math.isnan(log_prob) else 0.0
    p = max(1e-7, min(1 - 1e-7, p))
    return math.log(p / (1 - p))


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
        self.weights = dict[tuple[int, ...], NDArray[np.float64]]()
        self.lead, self.n_learned = 0.0, 0

    def cost(self, token: int, mode: int, log_probs: NDArray[np.float32], said: Said, at: int) -> float:
        if not mode & GRADE:
            return 0.0
        steps, cost = [], 0.0
        p = np.exp(log_probs.astype(np.float64))
        if mode & MARKS:
            x = np.zeros(OWN + said.inputs.shape[1])
            x[0], x[2], x[COUNTS] = max(-16, math.log(p[MARK] / (1 - p[MARK]))), 0.3, max(-16, said.flags[at])
            logit = float(self.row((-1,), len(x)) @ x)
            q = min(1 - 1e-7, max(1e-7, squash(logit)))
            cost -= math.log2(q if token == MARK else 1 - q)
            if mode & LEARN:
                self.weights[(-1,)] += x * (float(token == MARK) - squash(logit)) * FLAG_RATE
        if token == MARK:
            return cost
        leaves = np.maximum(p[:MARK], _LEAST_BYTE)
        top = int(p[:MARK].argmax()), int(min(7, p[:MARK].max() * 8))
        for b in range(8):
            bit, width = token >> 7 - b & 1, 1 << 7 - b
            middle = ((token >> 8 - b << 1) + 1) * width
            network = math.log(leaves[middle : middle + width].sum() / leaves[middle - width : middle].sum())
            keys, x = self.ask(b, token, network, said, at, top)
            logits = [clip(float(self.row(key, len(x)) @ x)) for key in keys]
            one = max(LEAST, min(1 - LEAST, squash(sum(logits) / N_SETS)))
            cost -= math.log2(one if bit else 1 - one)
            steps.append((keys, x, logits, bit))
        if mode & LEARN:
            self.learn(steps)
            alone = -float(log_probs[token]) / math.log(2)
            self.lead += (max(-8, min(8, said.bits[at] - alone)) - self.lead) * LATELY
            self.n_learned += 1
        return cost

    def ask(
        self, b: int, token: int, network: float, said: Said, at: int, top: tuple[int, int]
    ) -> tuple[list[tuple[int, ...]], Any]:
        opinions, (known, foretold, last, kinds, word) = said.opinions[at * 8 + b], said.chosen[at].tolist()
        prefix, counts, network = (token | 256) >> 8 - b, clip(float(opinions[0])), clip(network)
        x = np.array([network, (squash(network) - 0.5) * SURENESS, 0.3, counts, opinions[1]])
        x = np.append(x, said.inputs[at * 8 + b].astype(float) * CONTEXT_SCALE)
        agree, pointed = 0, points(top[0], b, prefix)
        if points(foretold, b, prefix):
            agree = 1 + ((foretold >> 7 - b & 1) == (network > 0))
        sure = sureness(counts), sureness(network)
        lately = int(max(-8, min(7, self.lead * 4)))
        keys = [
            (0, prefix),
            (1, *sure, counts * network > 0),
            (2, known, b),
            (3, lately, sure[1], b),
            (4, agree, sure[0], b),
            (5, pointed, top[1], b),
            (6, top[0] if pointed else 256, b),
            (7, last, b),
            (8, kinds, b),
            (9, word, b),
        ]
        return keys, x

    def row(self, key: tuple[int, ...], width: int) -> NDArray[np.float64]:
        if key not in self.weights:
            self.weights[key] = np.zeros(width)
            self.weights[key][COUNTS] = 1.0
        return self.weights[key]

    def learn(self, steps: list[tuple[list[tuple[int, ...]], Any, list[float], Any]]) -> None:
        rate = RATE + RATE_FIRST / (1 + self.n_learned / FIRST_BYTES)
        for keys, x, logits, bit in steps:
            for key, logit in zip(keys, logits, strict=True):
                self.weights[key] += x * (float(bit) - squash(logit)) * rate
