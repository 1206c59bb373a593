"""Bytes to tokens and back while a document arrives; the sum of bytes per token is exact for any input."""

from livelm.tokenize.bits import Bits
from livelm.tokenize.bpe import Bpe
from livelm.tokenize.bytes import Bytes
from livelm.tokenize.world import World

TOKENIZERS = {
    "bits": Bits,
    "bpe": Bpe,
    "bytes": Bytes,
    "world": World,
}
"""Every tokenizer by the name a recipe uses; each is built with `kind(kind.Config(...))`."""
