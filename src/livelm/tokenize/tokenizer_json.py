"""Read a Hugging Face tokenizer.json strictly: lossless over bytes, no normalizer, no special token from text."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from tokenizers import Tokenizer as Library

from livelm.errors import ConfigError

_Id = Annotated[int, Field(ge=0, lt=1 << 24)]  # the limit keeps a damaged file from asking for a table of terabytes


class _Added(BaseModel):
    id: _Id
    content: str


class _Model(BaseModel):
    vocab: dict[str, _Id]
    merges: list[str | tuple[str, str]]
    ignore_merges: bool = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _File(BaseModel):
    model: _Model
    added_tokens: list[_Added] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a tokenizer.json defines, made safe for hostile text."""

    library: Library
    """Encodes valid UTF-8; it knows no added tokens, no normalizer, no post-processor."""
    plain: dict[int, bytes]
    """The bytes of every id that text can produce."""
    bytes_to_id: tuple[int, ...]
    """The id of each of the 256 byte values as a token of its own."""
    reserved: dict[str, int]
    """Ids that text cannot produce, by name: the special tokens."""
    highest: int
    """The highest id the file defines, reserved ones included."""


def read_vocabulary(file: str) -> Vocabulary:
    """Load and check a byte-level BPE tokenizer.

    Four things are taken out of the file before the library sees it, because each changes bytes or lets text speak with
    the voice of a control token: the normalizer (NFC and the like rewrite bytes), the prefix space, the added tokens
    (their ids stay reserved; their text is encoded like any other), and the post-processor.

    Raises ConfigError if the file is missing, is no tokenizer.json, or is not lossless over bytes.
    """
    raw = _read_json(file)
    parsed = _parse(raw, file)
    names = {token.content: token.id for token in parsed.added_tokens}
    plain = _plain_tokens(parsed.model, names)
    by_value = {text[0]: id_ for id_, text in plain.items() if len(text) == 1}
    if len(by_value) < 256:
        absent = next(value for value in range(256) if value not in by_value)
        raise ConfigError(
            f"tokenizer.file {file!r} has tokens for {len(by_value)} of the 256 byte values (0x{absent:02x} is "
            "missing), so it cannot encode every input. Use a byte-level tokenizer, or the `bytes` tokenizer."
        )
    defined = parsed.model.vocab | names
    reserved = {name: id_ for name, id_ in defined.items() if id_ not in plain}
    return Vocabulary(
        library=_build_library(raw, reserved, file),
        plain=plain,
        bytes_to_id=tuple(by_value[value] for value in range(256)),
        reserved=reserved,
        highest=max(defined.values()),
    )


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2, Radford et al. 2019).

    Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + k): value for k, value in enumerate(rest)}


def _read_json(file: str) -> dict[str, Any]:
    path = Path(file).expanduser()
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"tokenizer.file {file!r} cannot be read: {error.strerror}. "
            "Name the tokenizer.json that belongs to a Hugging Face model."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"tokenizer.file {file!r} is not JSON: {error}. Is it a tokenizer.json?") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise ConfigError(
            f"tokenizer.file {file!r} is JSON but has no `model`: it is not a Hugging Face tokenizer.json."
        )
    return raw


def _parse(raw: dict[str, Any], file: str) -> _File:
    kind = raw["model"].get("type", "BPE")  # the oldest files do not say, and are BPE
    if kind != "BPE":
        raise ConfigError(
            f"tokenizer.file {file!r} is of type {kind!r}; only byte-level BPE is lossless over bytes here."
        )
    if not any(part.get("type") == "ByteLevel" for part in _parts(raw.get("pre_tokenizer"))):
        raise ConfigError(
            f"tokenizer.file {file!r} has no ByteLevel pre-tokenizer, so it does not keep every byte. "
            "Use a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, DeepSeek), or the `bytes` tokenizer."
        )
    try:
        parsed = _File.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"tokenizer.file {file!r} is damaged at {place!r}: {first['msg']}.") from None
    affix = parsed.model.continuing_subword_prefix or parsed.model.end_of_word_suffix
    if affix:
        raise ConfigError(
            f"tokenizer.file {file!r} adds {affix!r} to its tokens, which stands for no byte of the text."
        )
    return parsed


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer and all those nested in it."""
    if isinstance(node, dict):
        yield node
        children = node.get("pretokenizers")
        for child in children if isinstance(children, list) else ():
            yield from _parts(child)


def _plain_tokens(model: _Model, added: Mapping[str, int]) -> dict[int, bytes]:
    """The ids text can produce: single bytes and results of merges; whole words too where merges are ignored."""
    alphabet = byte_alphabet()
    merged = {"".join(_pair(merge)) for merge in model.merges}
    plain = {}
    for token, id_ in model.vocab.items():
        reachable = len(token) == 1 or token in merged or (model.ignore_merges and token not in added)
        if token and reachable and all(char in alphabet for char in token):
            plain[id_] = bytes(alphabet[char] for char in token)
    return plain


def _pair(merge: str | tuple[str, str]) -> Iterable[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _build_library(raw: dict[str, Any], reserved: Mapping[str, int], file: str) -> Library:
    safe = raw | {"added_tokens": [], "normalizer": None, "post_processor": None, "truncation": None, "padding": None}
    safe["model"] = raw["model"] | {"dropout": None}  # dropout would make encoding random
    # Where merges are ignored, a whole word is looked up in the vocabulary, and a control token's name is one, too.
    if raw["model"].get("ignore_merges"):
        safe["model"]["vocab"] = {t: i for t, i in raw["model"]["vocab"].items() if t not in reserved}
    safe["pre_tokenizer"] = json.loads(json.dumps(raw["pre_tokenizer"]))
    for part in _parts(safe["pre_tokenizer"]):
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
    try:
        return Library.from_str(json.dumps(safe))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"tokenizer.file {file!r} is refused by the tokenizers library: {error}.") from None
