"""Which contexts are asked: all that pay, or those that pay most for their time."""

from livelm.memory.contexts import CONTEXTS

# Each cost less than 0.12 % on text and less than 0.2 % on logs when it alone was left out of all.
_FOR_LITTLE = ("sparse 34", "sparse 24", "four words", "letters", "brackets", "word and above", "field")

PRESETS = {"fast": tuple(name for name in CONTEXTS if name not in _FOR_LITTLE), "rich": CONTEXTS}
