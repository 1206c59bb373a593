"""Predict the bits of a byte from everything the contexts remember, then learn the byte.

Nothing is learned between the bits of a byte: so the distribution of a byte is a plain product along the tree of its
bits, and asking for it changes nothing. (Learning after each bit instead gained nothing: 1.9308 against 1.9305.)
"""

import math

import numpy as np

from livelm.compiled import called, compiled, inlined
from livelm.memory.contexts import (
    CLASSES,
    COLUMN,
    FIELD,
    INDEX,
    ORDER_2,
    ORDER_8,
    POSITION,
    RECENT,
    WORD,
    WORD_LENGTH,
    byte_class,
    finish,
    hash_contexts,
    observe,
    start_document,
)
from livelm.memory.marks import learn_mark, mark_probability
from livelm.memory.match import LENGTH, MISSES, POINTER, length_grade, match_cell, recall
from livelm.memory.mixing import LEAST, N_STRETCH, add_scaled, bin_of, clip, dot, falling, squash
from livelm.memory.slots import count_cell, find_bucket, find_run, half_hash, learn_context
from livelm.memory.tables import (
    CONTEXT_INPUTS,
    MAP_ROWS,
    MATCH_INPUTS,
    N_FINALS,
    N_MAPS,
    N_SETS,
    Moment,
    Said,
    Tables,
)

MIX_RATE, MIX_RATE_FIRST = 0.0003, 0.01
FINAL_RATE = 0.002
MAP_RATE = 0.02
MAP_SHARE = 0.6
"""How much of the probability is the adaptive maps'; the rest is the mixers'."""
CELL_RATE = 0.004
SURENESS = 3.0
"""Scale of the inputs p - 1/2 of matches, which speak louder than a logit where p is near a half."""
TRUSTED_AT = 16
"""A counter's own input is its logit times how often it was used, up to here: so its weight grows with use."""
CONSTANT_INPUT = 0.3
LEANING = 1.5
"""From this logit on a context leans clearly to one side."""
_STEPS = N_STRETCH - 0.01
LEANING_A = tuple(INDEX[name] for name in ("order 2", "order 3", "order 4", "order 5", "word and last"))
LEANING_B = tuple(INDEX[name] for name in ("order 1", "order 6", "word pair", "last and word", "column"))
"""Contexts whose opinions together choose weights."""
MARK = 256
"""The token that opens a document."""
GRADE, LEARN, MARKS, AHEAD = 1, 2, 4, 8
"""What a token is for: it is graded; it is learned; the news whether a document opens here is graded (and learned); it
is only asked about, and the past stays as it is: so where a byte is not all there yet, and comes again."""


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
    if c.chosen.shape[0] > N_SETS:
        c.chosen[8] = finish(recent & 0xFFFF) & 0x1FF
        c.chosen[9] = finish(s[WORD]) & 0x1FF


@inlined
def choose_more(c: Moment, b, expected):
    """The rows of the sets that only a memory of all contexts has; there a context's place is its number."""
    c.set_rows[b, 8] = c.chosen[8] << 3 | b
    c.set_rows[b, 9] = c.chosen[9] << 3 | b
    c.set_rows[b, 10] = c.words[b, ORDER_2] >> 24 | (256 if expected else 0)
    c.set_rows[b, 11] = c.words[b, ORDER_2 + 1] >> 24
    c.set_rows[b, 12] = leanings(c, b, LEANING_A)
    c.set_rows[b, 13] = leanings(c, b, LEANING_B)


@inlined
def leanings(c: Moment, b, contexts):
    """A number below 5^5: of each of five contexts whether it knows nothing, or in which of four ranges it leans."""
    number = 0
    for context in contexts:
        logit, leaning = c.inputs[b, context * CONTEXT_INPUTS], 0
        if c.words[b, context] != 0:
            leaning = 1 if logit < -LEANING else 2 if logit < 0 else 3 if logit < LEANING else 4
        number = number * 5 + leaning
    return number


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
def trust(word):
    """0 to 1: how much a counter has seen."""
    return min((word >> 18) & 63, TRUSTED_AT) * (1 / TRUSTED_AT)


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
            c.inputs[b, at] = t.stretch[int(t.history_map[i, word >> 24] * _STEPS)]
            c.inputs[b, at + 1] = t.stretch[(word & 0x3FFFF) >> 6] * trust(word)
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
    for k in range(N_SETS):  # a number that the compiler knows: written out, it is a twentieth faster
        ask_set(t, c, b, k)
    if c.chosen.shape[0] > N_SETS:
        choose_more(c, b, expected)
        for k in range(N_SETS, c.chosen.shape[0]):
            ask_set(t, c, b, k)
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
def ask_set(t: Tables, c: Moment, b, k):
    """What one set of weights makes of the inputs."""
    c.set_rows[b, k] += t.set_first[k]
    c.logits[b, k] = clip(dot(t.weights, c.set_rows[b, k], c.inputs, b))


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
    rate = falling(MIX_RATE, MIX_RATE_FIRST, t.summary[POSITION])
    for k in range(N_SETS):
        add_scaled(t.weights, c.set_rows[b, k], c.inputs, b, (target - squash(c.logits[b, k])) * rate)
    for k in range(N_SETS, c.chosen.shape[0]):
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
    """Let every context count the byte that came."""
    for i in range(t.active.shape[0]):
        h = c.hashes[t.active[i]]
        where = t.bucket_first[i], t.bucket_groups[i]
        learn_context(t.runs, t.buckets, c.run_at[i], c.found[i], where, h, byte, t.after, t.rates)


@called
def take_byte(t: Tables, byte):
    """Move the past on by the byte that came, and follow or find its repetitions; nothing is counted."""
    observe(t.summary, t.ring, byte)
    for m in range(t.minima.shape[0]):
        recall(t.matches, m, t.ring, t.places, t.summary, t.minima[m], byte)


@called
def predict_half(t: Tables, c: Moment, byte, start):
    """The probability of a one of each of the four bits from `start` of `byte`, into `c.p`."""
    begin_half(t, c, (byte | 256) >> (8 - start) if start else 0)
    for b in range(start, start + 4):
        c.p[b] = predict(t, c, b, (byte | 256) >> (8 - b))


@called
def learn_bits(t: Tables, c: Moment, byte):
    """Correct all weights and maps by the bits of `byte`."""
    for b in range(8):
        learn_bit(t, c, b, (byte | 256) >> (8 - b), (byte >> (7 - b)) & 1)


@inlined
def keep_opinions(c: Moment, b, p, opinions, inputs, at):
    """What a network joins: the counts' logit, that of their mixers before the maps corrected it, and their inputs."""
    opinions[at, 0], opinions[at, 1] = math.log(p / (1 - p)), c.mixed[b]
    for i in range(c.inputs.shape[1]):
        inputs[at, i] = c.inputs[b, i]


@inlined
def keep_chosen(c: Moment, chosen, at):
    """How much is known (orders known * 8 + grade of the match), the byte that the match foretells, the last byte, the
    kinds of the last three, and how long the word is and what stood before it."""
    chosen[at, 0], chosen[at, 1] = c.chosen[2] << 3 | c.chosen[0], c.longest[0]
    chosen[at, 2], chosen[at, 3], chosen[at, 4] = c.chosen[1], c.chosen[3], c.chosen[6]


@compiled
def score(t: Tables, c: Moment, tokens, modes, said: Said):
    """Grade tokens (bytes, and MARK where a document opens) one after another; learn each before the next is graded.

    `modes`: what each token is for (GRADE, LEARN, MARKS, AHEAD).
    """
    for at in range(tokens.shape[0]):
        token, mode = np.int64(tokens[at]), modes[at]
        said.bits[at] = said.flags[at] = 0.0
        if mode & MARKS:
            q = mark_probability(t.marks, t.summary)
            said.flags[at] = math.log(q / (1 - q))
            said.bits[at] = -math.log2(q if token == MARK else 1 - q)
            if mode & LEARN:
                learn_mark(t.marks, t.summary, token == MARK)
        if mode & AHEAD and not mode & GRADE:
            continue
        if token == MARK:
            start_document(t.summary)
            t.matches[:] = 0
            continue
        if mode & GRADE:
            begin_byte(t, c)
            predict_half(t, c, token, 0)
            predict_half(t, c, token, 4)
            for b in range(8):
                said.bits[at] -= math.log2(c.p[b] if (token >> (7 - b)) & 1 else 1 - c.p[b])
            if said.opinions.shape[0]:
                for b in range(8):
                    keep_opinions(c, b, c.p[b], said.opinions, said.inputs, at * 8 + b)
                keep_chosen(c, said.chosen, at)
        if mode & LEARN:
            learn_bits(t, c, token)
            learn_byte(t, c, token)
        if not mode & AHEAD:
            take_byte(t, token)


@compiled
def distribute(t: Tables, c: Moment, said: Said):
    """The distribution of the next token into `said.flags` and `said.tree`, where tree[n] is that of all bytes under n.

    `said.nodes`: what was thought at every inner node. Nothing is learned.
    """
    begin_byte(t, c)
    said.tree[1] = 1.0
    spread(t, c, 0, 1, said)
    for first in range(16, 32):
        spread(t, c, first, first, said)
    q = mark_probability(t.marks, t.summary)
    said.flags[0] = math.log(q / (1 - q))
    keep_chosen(c, said.chosen, 0)


@called
def spread(t: Tables, c: Moment, half, root, said: Said):
    """Share the probability of a node of the tree of bits among its descendants, four bits deep."""
    begin_half(t, c, half)
    start = 4 if half else 0
    for b in range(start, start + 4):
        for prefix in range(root << (b - start), (root + 1) << (b - start)):
            p = predict(t, c, b, prefix)
            keep_opinions(c, b, p, said.nodes, said.node_inputs, prefix)
            said.tree[2 * prefix], said.tree[2 * prefix + 1] = said.tree[prefix] * (1 - p), said.tree[prefix] * p
