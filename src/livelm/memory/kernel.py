"""Predict the bits of a byte from everything the contexts remember, then learn the byte.

Nothing is learned between the bits of a byte: so the distribution of a byte is a plain product along the tree of its
bits, and asking for it changes nothing. (Learning after each bit instead gained nothing: 1.9308 against 1.9305.)
"""

import math

import numpy as np

from livelm.memory.compiled import called, compiled, inlined
from livelm.memory.contexts import (
    CLASSES,
    COLUMN,
    FIELD,
    ORDER_2,
    ORDER_8,
    POSITION,
    RECENT,
    WORD_LENGTH,
    byte_class,
    finish,
    hash_contexts,
    observe,
)
from livelm.memory.match import LENGTH, MISSES, POINTER, length_grade, match_cell, recall
from livelm.memory.mixing import LEAST, N_STRETCH, add_scaled, bin_of, clip, dot, squash
from livelm.memory.slots import count_cell, find_bucket, find_run, half_hash, learn_context
from livelm.memory.tables import (
    CONTEXT_INPUTS,
    JOIN_ROWS,
    MAP_ROWS,
    MATCH_INPUTS,
    N_FINALS,
    N_MAPS,
    N_SETS,
    Moment,
    Tables,
)

MIX_RATE, MIX_RATE_FIRST, FIRST_BYTES = 0.0003, 0.01, 16384.0
FINAL_RATE = 0.002
MAP_RATE = 0.02
MAP_SHARE = 0.6
"""How much of the probability is the adaptive maps'; the rest is the mixers'."""
CELL_RATE = 0.004
SURENESS = 3.0
"""Scale of the inputs p - 1/2, which speak louder than a logit where p is near a half."""
CONSTANT_INPUT = 0.3
JOIN_RATE = 0.004
N_JOINS = len(JOIN_ROWS)
_STEPS = N_STRETCH - 0.01
_LEAST_BYTE = 1e-7
"""A network's probability of a byte is taken as no less than this, whatever it says."""


@inlined
def agrees(byte, b, prefix):
    """Whether the first b bits of `byte` (-1: none) are those of `prefix`, which has a leading one."""
    return byte >= 0 and (byte | 256) >> (8 - b) == prefix


@called
def begin_byte(t: Tables, c: Moment):
    """Look everything up that does not depend on the bits of the next byte."""
    c.longest[0], c.longest[1] = -1, 0
    for m in range(t.minima.shape[0]):
        c.foretold[m] = -1
        if t.matches[m, POINTER] > 0:
            c.foretold[m] = t.ring[t.matches[m, POINTER] & (t.ring.shape[0] - 1)]
            c.cell[m] = match_cell(t.matches[m, LENGTH], t.matches[m, MISSES])
            if c.longest[0] < 0 or t.matches[m, LENGTH] > c.longest[1]:
                c.longest[0], c.longest[1] = c.foretold[m], t.matches[m, LENGTH]
    hash_contexts(t.summary, t.ring, c.longest[0], c.longest[1], c.hashes)
    known = 0
    for i in range(t.active.shape[0]):
        context = t.active[i]
        c.hashes[context] = finish(c.hashes[context] + t.salt[0])
        c.run_at[i], c.found[i] = find_run(t.runs, t.run_first[i], t.run_groups[i], c.hashes[context])
        c.expected[i], c.split[i] = -1, 0
        if c.found[i]:
            word = np.int64(t.runs[c.run_at[i]])
            c.expected[i], c.length[i], c.split[i] = (word >> 8) & 0xFF, (word >> 1) & 0x7F, word & 1
            known += ORDER_2 <= context <= ORDER_8
    choose_weights(t.summary, c, known)


@called
def choose_weights(s, c: Moment, known):
    """What chooses the weights of each set, as far as it is the same for all bits of the byte."""
    recent, length = s[RECENT], min(s[WORD_LENGTH], 7)
    c.chosen[0] = 0 if c.longest[0] < 0 else 1 + length_grade(c.longest[1])
    c.chosen[1] = recent & 0xFF
    c.chosen[2] = known
    c.chosen[3] = s[CLASSES] & 0o777
    c.chosen[4] = c.longest[0]
    c.chosen[5] = s[COLUMN] if s[COLUMN] < 128 else 128 + min(127, s[FIELD])
    c.chosen[6] = min(s[WORD_LENGTH], 15) * 8 + byte_class((recent >> 8 * length) & 0xFF)
    c.chosen[7] = (recent >> 8) & 0xFF


@inlined
def begin_half(t: Tables, c: Moment, half):
    """Find the buckets of a half byte: `half` is 0 for the first, 16 + the first for the second."""
    for i in range(t.active.shape[0]):
        c.row[i] = 0
        if c.split[i]:
            h = half_hash(c.hashes[t.active[i]], half)
            row, found = find_bucket(t.buckets, t.bucket_first[i], t.bucket_groups[i], h)
            c.row[i] = row if found else 0


@inlined
def ask_contexts(t: Tables, c: Moment, b, prefix):
    """Fill the inputs of bit `b` with what each context says."""
    node = prefix if b < 4 else (prefix & ((1 << (b - 4)) - 1)) | 1 << (b - 4)
    for i in range(t.active.shape[0]):
        at, agree, bit = i * CONTEXT_INPUTS, agrees(c.expected[i], b, prefix), (c.expected[i] >> (7 - b)) & 1
        word = 0
        if c.split[i]:
            word = np.int64(t.buckets[c.row[i], node])
        elif agree:
            word = t.singles[c.length[i], bit]
        c.words[b, i] = word
        c.inputs[b, at] = c.inputs[b, at + 1] = c.inputs[b, at + 2] = c.inputs[b, at + 3] = 0
        if word != 0:
            p = t.history_map[i, word >> 24]
            c.inputs[b, at] = t.stretch[int(p * _STEPS)]
            c.inputs[b, at + 1] = (p - 0.5) * SURENESS
            c.inputs[b, at + 2] = t.stretch[int(t.count_map[i, count_cell(word)] * _STEPS)]
        if agree:
            logit = t.stretch[int(t.run_map[i, c.split[i], b, c.length[i]] * _STEPS)]
            c.inputs[b, at + 3] = logit if bit else -logit


@inlined
def ask_matches(t: Tables, c: Moment, b, prefix):
    """Fill the inputs of bit `b` with what each match says, and the constant one."""
    at = t.active.shape[0] * CONTEXT_INPUTS
    for m in range(t.minima.shape[0]):
        c.inputs[b, at] = c.inputs[b, at + 1] = 0
        if agrees(c.foretold[m], b, prefix):
            p = t.match_map[m, c.cell[m]]
            sign = 1 if (c.foretold[m] >> (7 - b)) & 1 else -1
            c.inputs[b, at] = sign * t.stretch[int(p * _STEPS)]
            c.inputs[b, at + 1] = sign * (p - 0.5) * SURENESS
        at += MATCH_INPUTS
    c.inputs[b, at] = CONSTANT_INPUT


@inlined
def predict(t: Tables, c: Moment, b, prefix):
    """The probability that bit `b` is one after the bits of `prefix`; keeps in `c` what learning it will need."""
    ask_contexts(t, c, b, prefix)
    ask_matches(t, c, b, prefix)
    expected = agrees(c.longest[0], b, prefix)
    c.set_rows[b, 0] = (c.chosen[0] if expected else 0) << 8 | prefix
    c.set_rows[b, 1] = c.chosen[1] << 3 | b
    c.set_rows[b, 2] = c.chosen[2] << 8 | prefix
    c.set_rows[b, 3] = c.chosen[3] << 3 | b
    c.set_rows[b, 4] = 256 + (c.chosen[4] << 3 | b) if expected else prefix
    c.set_rows[b, 5] = c.chosen[5] << 3 | b
    c.set_rows[b, 6] = c.chosen[6] << 3 | b
    c.set_rows[b, 7] = c.chosen[7] << 3 | b
    for k in range(N_SETS):
        c.set_rows[b, k] += t.set_first[k]
        c.logits[b, k] = clip(dot(t.weights, c.set_rows[b, k], c.inputs, b))
    logit = mix_sets(t, c, b, prefix, expected)
    recent = t.summary[RECENT]
    bit = (c.longest[0] >> (7 - b)) & 1
    c.map_rows[b, 0] = (recent & 0xFF) << 8 | prefix
    c.map_rows[b, 1] = finish((recent & 0xFFFF) << 8 | prefix) & (MAP_ROWS - 1)
    c.map_rows[b, 2] = finish((recent & 0xFFFFFF) << 8 | prefix | 1 << 40) & (MAP_ROWS - 1)
    c.map_rows[b, 3] = (c.chosen[0] * 2 + bit if expected else 0) << 8 | prefix
    low, share = bin_of(logit)
    refined = 0.0
    for k in range(N_MAPS):
        row = c.map_rows[b, k]
        refined += t.maps[k, row, low] * (1 - share) + t.maps[k, row, low + 1] * share
    p = squash(logit) * (1 - MAP_SHARE) + refined * (MAP_SHARE / N_MAPS)
    return max(LEAST, min(1 - LEAST, p))


@inlined
def mix_sets(t: Tables, c: Moment, b, prefix, expected):
    """The mean of the final mixers' logits, each of which weighs what the sets say by weights of its own choice."""
    c.final_rows[b, 0] = prefix
    c.final_rows[b, 1] = c.chosen[1]
    c.final_rows[b, 2] = c.chosen[2] << 3 | b
    c.final_rows[b, 3] = (c.chosen[0] if expected else 0) << 3 | b
    c.final_rows[b, 4] = c.chosen[3]
    c.final_rows[b, 5] = c.chosen[6]
    total = 0.0
    for k in range(N_FINALS):
        c.final_rows[b, k] += t.final_first[k]
        c.finals[b, k] = clip(dot(t.final, c.final_rows[b, k], c.logits, b))
        total += c.finals[b, k]
    c.mixed[b] = total / N_FINALS
    return c.mixed[b]


@inlined
def learn_bit(t: Tables, c: Moment, b, prefix, bit):
    """Correct weights and maps by what bit `b` was."""
    target = 1.0 if bit else 0.0
    low, share = bin_of(c.mixed[b])
    for k in range(N_MAPS):
        row = c.map_rows[b, k]
        t.maps[k, row, low] += (target - t.maps[k, row, low]) * MAP_RATE * (1 - share)
        t.maps[k, row, low + 1] += (target - t.maps[k, row, low + 1]) * MAP_RATE * share
    for k in range(N_FINALS):
        add_scaled(t.final, c.final_rows[b, k], c.logits, b, (target - squash(c.finals[b, k])) * FINAL_RATE)
    rate = MIX_RATE + MIX_RATE_FIRST / (1.0 + t.summary[POSITION] / FIRST_BYTES)
    for k in range(N_SETS):
        add_scaled(t.weights, c.set_rows[b, k], c.inputs, b, (target - squash(c.logits[b, k])) * rate)
    for i in range(t.active.shape[0]):
        word = c.words[b, i]
        if word != 0:
            t.history_map[i, word >> 24] += (target - t.history_map[i, word >> 24]) * CELL_RATE
            cell = count_cell(word)
            t.count_map[i, cell] += (target - t.count_map[i, cell]) * CELL_RATE
        if agrees(c.expected[i], b, prefix):
            hit = 1.0 if (c.expected[i] >> (7 - b)) & 1 == bit else 0.0
            t.run_map[i, c.split[i], b, c.length[i]] += (hit - t.run_map[i, c.split[i], b, c.length[i]]) * CELL_RATE
    for m in range(t.minima.shape[0]):
        if agrees(c.foretold[m], b, prefix):
            hit = 1.0 if (c.foretold[m] >> (7 - b)) & 1 == bit else 0.0
            t.match_map[m, c.cell[m]] += (hit - t.match_map[m, c.cell[m]]) * CELL_RATE


@called
def learn_byte(t: Tables, c: Moment, byte):
    """Let every context and match take the byte that came."""
    for i in range(t.active.shape[0]):
        h = c.hashes[t.active[i]]
        where = t.bucket_first[i], t.bucket_groups[i]
        learn_context(t.runs, t.buckets, c.run_at[i], c.found[i], where, h, byte, t.after, t.rates)
    observe(t.summary, t.ring, byte)
    for m in range(t.minima.shape[0]):
        recall(t.matches, m, t.ring, t.places, t.summary, t.minima[m], byte)


@called
def plant(tree, log_probs, at):
    """Sum a network's distribution over the tree of bits: tree[n] is the probability of all bytes under node n."""
    for byte in range(256):
        p = math.exp(min(0.0, log_probs[at, byte]))
        tree[256 + byte] = p if p > _LEAST_BYTE else _LEAST_BYTE  # so too where it is not a number
    for node in range(255, 0, -1):
        tree[node] = tree[2 * node] + tree[2 * node + 1]


@inlined
def join(t: Tables, c: Moment, b, prefix, p):
    """The probability that bit `b` is one, when the counts say `p` and the network what is in `c.tree`."""
    q = c.tree[2 * prefix + 1] / c.tree[prefix]
    counts, network = clip(math.log(p / (1 - p))), clip(math.log(q / (1 - q)))
    c.join_inputs[b, 0], c.join_inputs[b, 1] = counts, network
    for k in range(N_SETS):
        c.join_inputs[b, 2 + k] = c.logits[b, k]
    c.join_inputs[b, 2 + N_SETS] = (q - 0.5) * SURENESS
    sure = int(min(7.0, abs(counts) * 1.5)) * 8 + int(min(7.0, abs(network) * 1.5))
    c.join_rows[b, 0] = prefix
    c.join_rows[b, 1] = JOIN_ROWS[0] + sure * 2 + (counts * network > 0)
    c.join_rows[b, 2] = JOIN_ROWS[0] + JOIN_ROWS[1] + min(c.chosen[2], 7) * 64 + min(c.chosen[0], 7) * 8 + b
    total = 0.0
    for k in range(N_JOINS):
        c.join_logits[b, k] = clip(dot(t.join, c.join_rows[b, k], c.join_inputs, b))
        total += c.join_logits[b, k]
    return max(LEAST, min(1 - LEAST, squash(total / N_JOINS)))


@inlined
def learn_join(t: Tables, c: Moment, b, bit):
    """Correct the weights where the network enters."""
    for k in range(N_JOINS):
        error = (1.0 if bit else 0.0) - squash(c.join_logits[b, k])
        add_scaled(t.join, c.join_rows[b, k], c.join_inputs, b, error * JOIN_RATE)


@called
def predict_half(t: Tables, c: Moment, byte, start):
    """The probability of a one of each of the four bits from `start` of `byte`, into `c.p`."""
    begin_half(t, c, (byte | 256) >> (8 - start) if start else 0)
    for b in range(start, start + 4):
        c.p[b] = predict(t, c, b, (byte | 256) >> (8 - b))


@called
def join_bits(t: Tables, c: Moment, byte):
    """The cost in bits of `byte` when the network in `c.tree` joins in."""
    cost = 0.0
    for b in range(8):
        p = join(t, c, b, (byte | 256) >> (8 - b), c.p[b])
        cost -= math.log2(p if (byte >> (7 - b)) & 1 else 1 - p)
    return cost


@called
def learn_bits(t: Tables, c: Moment, byte, has_network):
    """Correct all weights and maps by the bits of `byte`."""
    for b in range(8):
        bit = (byte >> (7 - b)) & 1
        learn_bit(t, c, b, (byte | 256) >> (8 - b), bit)
        if has_network:
            learn_join(t, c, b, bit)


@compiled
def score(t: Tables, c: Moment, text, log_probs, bits, joined):
    """Cost of each byte in bits, counts alone (`bits`) and with the network (`joined`); learns after each byte.

    `log_probs`: (n, 256) of the network, or (0, 256) where there is none; then `joined` is not touched.
    """
    has_network = log_probs.shape[0] > 0
    for at in range(text.shape[0]):
        byte = np.int64(text[at])
        begin_byte(t, c)
        predict_half(t, c, byte, 0)
        predict_half(t, c, byte, 4)
        bits[at] = 0.0
        for b in range(8):
            bits[at] -= math.log2(c.p[b] if (byte >> (7 - b)) & 1 else 1 - c.p[b])
        if has_network:
            plant(c.tree, log_probs, at)
            joined[at] = join_bits(t, c, byte)
        learn_bits(t, c, byte, has_network)
        learn_byte(t, c, byte)


@compiled
def distribute(t: Tables, c: Moment, log_probs, out):
    """Log probability (natural) of each next byte into `out` (512,), at 256 and up; nothing is learned.

    `log_probs`: (1, 256) of the network, or (0, 256) where there is none.
    """
    has_network = log_probs.shape[0] > 0
    begin_byte(t, c)
    if has_network:
        plant(c.tree, log_probs, 0)
    out[1] = 0.0
    spread(t, c, 0, 1, has_network, out)
    for first in range(16, 32):
        spread(t, c, first, first, has_network, out)


@called
def spread(t: Tables, c: Moment, half, root, has_network, out):
    """Share the probability of a node of the tree of bits among its descendants, four bits deep."""
    begin_half(t, c, half)
    start = 4 if half else 0
    for b in range(start, start + 4):
        for prefix in range(root << (b - start), (root + 1) << (b - start)):
            p = predict(t, c, b, prefix)
            if has_network:
                p = join(t, c, b, prefix, p)
            out[2 * prefix] = out[prefix] + math.log(1 - p)
            out[2 * prefix + 1] = out[prefix] + math.log(p)
