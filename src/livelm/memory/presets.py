"""Which contexts are asked: all that pay, or those that pay most for their time."""

from livelm.memory.contexts import CONTEXTS

# Of the first line, each cost less than 0.12 % on text and less than 0.2 % on logs when it alone was left out of all.
# Of the others, which look at words before this one, each group of two to four gained 0.01 to 0.1 % on prose.
_FOR_LITTLE = (
    "sparse 34", "sparse 24", "four words", "letters", "brackets", "word and above", "field",
    "three words", "last and word", "order 2 and word", "order 3 and word",
    "word and line above", "word and line", "word in sentence", "word and point",
    "vowels and last", "vowels", "word after point", "word and capitals", "word in brackets",
    "word and last ending", "ending and last word",
)  # fmt: skip

PRESETS = {"fast": tuple(name for name in CONTEXTS if name not in _FOR_LITTLE), "rich": CONTEXTS}
