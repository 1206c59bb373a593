"""What the next byte may depend on: one context, one line of a table.

`observe` keeps a summary of the past (the last bytes, words, fields, lines); `hash_contexts` turns it into one number
per context. All arithmetic is on 64-bit integers that wrap around.
"""

import numpy as np

from livelm.compiled import called, inlined

CONTEXTS = (
    "order 0", "order 1", "order 2", "order 3", "order 4", "order 5", "order 6", "order 8",
    "word", "word and last", "word pair", "word skipping", "four words",
    "sparse 2", "sparse 34", "sparse 24", "high halves",
    "column", "column and above", "word and above",
    "field", "shape", "shape and last", "kinds", "letters", "brackets",
    "match",
    "three words", "last and word", "order 2 and word", "order 3 and word",
    "word and line above", "word and line", "word in sentence", "word and point",
    "vowels and last", "vowels", "word after point", "word and capitals", "word in brackets",
    "word and last ending", "ending and last word",
)  # fmt: skip
"""Names in the order of the lines of `hash_contexts`."""
N_CONTEXTS = len(CONTEXTS)
INDEX = {name: i for i, name in enumerate(CONTEXTS)}
ORDER_2, ORDER_8 = INDEX["order 2"], INDEX["order 8"]

N_SUMMARY = 28
"""Numbers in the summary of the past, whose places follow."""
# fmt: off
(RECENT, CLASSES, POSITION, COLUMN, LINE, ABOVE_LINE, LINE_HASH, FIRST, FIELD, TOKEN, SHAPE, BRACKET,
 WORD, WORD_1, WORD_2, WORD_3, WORD_LENGTH, LETTERS, BLANKS,
 SENTENCE, POINT, LINE_WORD, ABOVE_WORD,
 VOWELS, CAPITALS, LAST_LETTERS, LAST_LENGTH, SINCE_POINT) = range(N_SUMMARY)
# fmt: on

CONTROL, BLANK, LINE_END, DIGIT, UPPER, LOWER, PUNCTUATION, BEYOND = range(8)
DIGIT_MARK, LETTER_MARK = 0x30, 0x61

K1 = 0x1E3779B97F4A7C15
K2 = 0x56E8FEB86659FD93
K3 = 0x3C79AC492BA7B653


@inlined
def combine(a, b):
    """A hash of two numbers; the order matters."""
    x = (a * K1) ^ ((b + 0x9E37) * K2)
    x ^= (x >> 29) & 0x7FFFFFFFF
    return x * K3


@called
def finish(x):
    """Spread every bit over all."""
    x ^= (x >> 32) & 0xFFFFFFFF
    x *= K1
    x ^= (x >> 29) & 0x7FFFFFFFF
    x *= K2
    return x ^ ((x >> 32) & 0xFFFFFFFF)


@called
def byte_class(byte):
    """Which of eight kinds a byte is."""
    if byte >= 0x80:
        return BEYOND
    if byte == 0x0A or byte == 0x0D:
        return LINE_END
    if byte == 0x20 or byte == 0x09:
        return BLANK
    if byte < 0x20:
        return CONTROL
    if 0x30 <= byte <= 0x39:
        return DIGIT
    if 0x41 <= byte <= 0x5A:
        return UPPER
    return LOWER if 0x61 <= byte <= 0x7A else PUNCTUATION


@called
def sound(letter):
    """1 for a vowel, 3 for y, which is both, 2 for any other letter (in lower case)."""
    if letter == 0x61 or letter == 0x65 or letter == 0x69 or letter == 0x6F or letter == 0x75:  # a e i o u
        return 1
    return 3 if letter == 0x79 else 2


@called
def start_document(s):
    """Forget the immediate past, as at the beginning of a stream; what was learned stays."""
    position = s[POSITION]
    s[:] = 0
    s[POSITION] = position
    s[LINE] = s[ABOVE_LINE] = position


@called
def observe(s, ring, byte):
    """Take one byte into the summary and into `ring`, which holds the last bytes."""
    ring[s[POSITION] & (ring.shape[0] - 1)] = byte
    s[POSITION] += 1
    s[RECENT] = s[RECENT] << 8 | byte
    kind = byte_class(byte)
    s[CLASSES] = s[CLASSES] << 3 | kind
    _observe_word(s, byte, kind)
    _observe_field(s, byte, kind)
    _observe_line(s, byte)


@called
def _observe_word(s, byte, kind):
    """Words are letters in either case and bytes beyond ASCII; a sentence's end forgets the words before the last."""
    if kind in (UPPER, LOWER, BEYOND):
        lower = byte | 32 if kind == UPPER else byte
        if s[WORD_LENGTH] == 0:
            s[CAPITALS] = s[CAPITALS] << 1 | (kind == UPPER)
        s[VOWELS] = s[VOWELS] << 2 | sound(lower)
        s[WORD] = combine(s[WORD], lower)
        s[WORD_LENGTH] += 1
        s[LETTERS] = s[LETTERS] << 8 | lower
    elif s[WORD_LENGTH] > 0:
        s[WORD_3], s[WORD_2], s[WORD_1] = s[WORD_2], s[WORD_1], s[WORD]
        if s[LINE_WORD] == 0:
            s[LINE_WORD] = s[WORD]
        s[LAST_LETTERS], s[LAST_LENGTH] = s[LETTERS], s[WORD_LENGTH]
        s[WORD], s[WORD_LENGTH] = 0, 0
        s[SENTENCE] += 1
        s[BLANKS] = byte
    else:
        s[BLANKS] = combine(s[BLANKS], byte)
    if s[WORD_LENGTH] == 0:
        s[VOWELS] <<= 2
    if byte == 0x2E or byte == 0x21 or byte == 0x3F:  # . ! ?
        s[WORD_2] = s[WORD_1] = s[SENTENCE] = 0
    if kind == PUNCTUATION:
        s[POINT], s[SINCE_POINT] = byte, 0
    elif kind == BLANK:
        s[SINCE_POINT] += 1


@called
def _observe_field(s, byte, kind):
    """Fields and tokens stand between blanks; the shape has one mark for a run of letters or of digits."""
    plain = kind in (DIGIT, UPPER, LOWER)
    mark = DIGIT_MARK if kind == DIGIT else LETTER_MARK if plain else byte
    if mark != (s[SHAPE] & 0xFF) or not plain:
        s[SHAPE] = s[SHAPE] << 8 | mark
    if kind in (BLANK, LINE_END):
        s[FIELD] += 1
        s[TOKEN] = 0
    else:
        s[TOKEN] = combine(s[TOKEN], byte)
    if byte == 0x28 or byte == 0x5B or byte == 0x7B or byte == 0x3C:  # ( [ { <
        s[BRACKET] = s[BRACKET] << 8 | byte
    elif byte == 0x29 or byte == 0x5D or byte == 0x7D or byte == 0x3E:  # ) ] } >
        s[BRACKET] = (s[BRACKET] >> 8) & 0xFFFFFFFFFFFFFF


@called
def _observe_line(s, byte):
    if byte == 0x0A:
        s[ABOVE_LINE], s[LINE] = s[LINE], s[POSITION]
        s[COLUMN], s[FIELD], s[LINE_HASH], s[FIRST], s[TOKEN] = 0, 0, 0, 0, 0
        s[ABOVE_WORD], s[LINE_WORD] = s[LINE_WORD], 0
        return
    s[COLUMN] += 1
    s[LINE_HASH] = combine(s[LINE_HASH], byte)
    if s[COLUMN] <= 4:
        s[FIRST] = s[LINE_HASH]


@called
def byte_above(s, ring):
    """The byte over the next one in the line before; 0 if that line was shorter."""
    at = s[ABOVE_LINE] + s[COLUMN]
    if at >= s[LINE] or s[POSITION] - at > ring.shape[0]:
        return 0
    return np.int64(ring[at & (ring.shape[0] - 1)])


@called
def hash_contexts(s, ring, expected, length, h):
    """Fill `h` with one number per context; `expected` is the byte that a match of `length` foretells, or -1."""
    recent, word, above = s[RECENT], s[WORD], byte_above(s, ring)
    last, column, pair = recent & 0xFF, min(s[COLUMN], 255), combine(s[WORD], s[WORD_1])
    gap = 0 if s[WORD_LENGTH] > 0 else last  # how the last word ended
    h[0] = 0
    h[1] = last
    h[2] = recent & 0xFFFF
    h[3] = recent & 0xFFFFFF
    h[4] = recent & 0xFFFFFFFF
    h[5] = recent & 0xFFFFFFFFFF
    h[6] = recent & 0xFFFFFFFFFFFF
    h[7] = recent  # order 8
    h[8] = combine(word, s[BLANKS])
    h[9] = combine(word, last)
    h[10] = combine(pair, 2)
    h[11] = combine(combine(word, s[WORD_2]), 1)
    h[12] = combine(pair, combine(s[WORD_2], s[WORD_3]))
    h[13] = recent & 0xFF00
    h[14] = recent & 0xFFFF0000
    h[15] = recent & 0xFF00FF00
    h[16] = recent & 0xF0F0F0F0F0F0
    h[17] = combine(column, last)
    h[18] = combine(above, column)
    h[19] = combine(combine(above, word), 3)
    h[20] = combine(combine(s[TOKEN], s[FIELD]), s[FIRST])
    h[21] = s[SHAPE]
    h[22] = combine(s[SHAPE] & 0xFFFFFFFF, last)
    h[23] = combine(s[CLASSES] & 0xFFFFFF, last)
    h[24] = combine(s[LETTERS] & 0xFFFFFFFFFF, gap)
    h[25] = combine(s[BRACKET] & 0xFFFF, recent & 0xFFFF)
    h[26] = combine(expected + 1, min(length, 32))
    h[27] = combine(combine(pair, s[WORD_2]), 7)
    h[28] = combine(combine(last, s[WORD_1]), 22)
    h[29] = combine(combine(recent & 0xFFFF, s[WORD_1]), 17)
    h[30] = combine(combine(recent & 0xFFFFFF, s[WORD_1]), 23)
    h[31] = combine(combine(word, s[ABOVE_WORD]), 9)
    h[32] = combine(combine(word, s[LINE_WORD]), 20)
    h[33] = combine(combine(word, s[SENTENCE]), 15)
    h[34] = combine(combine(word, s[POINT]), 18)
    h[35] = combine(combine(s[VOWELS] & 0xFFFF, last), 10)
    h[36] = combine(combine(s[VOWELS] & 0xFFFFFF, s[WORD_LENGTH]), 23)
    h[37] = combine(combine(word, min(s[SINCE_POINT], 8)), combine(s[POINT], 11))
    h[38] = combine(combine(word, s[CAPITALS] & 3), combine(s[LAST_LENGTH], 14))
    h[39] = combine(combine(word, s[BRACKET] & 0xFF), s[CAPITALS] & 1)
    h[40] = combine(combine(word, s[LAST_LETTERS] & 0xFFFFFF), 12)
    h[41] = combine(combine(s[LETTERS] & 0xFFFFFFFF, s[WORD_1]), 24)
