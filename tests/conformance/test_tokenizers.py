"""What every tokenizer of TOKENIZERS promises: lossless, exact counts, indifferent to how bytes arrive."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from livelm.errors import ContractError
from livelm.tokenize import TOKENIZERS
from livelm.tokenize.decoder import Decoder
from livelm.types import Encoder, Tokenizer, Tokens

SHARED = Path(__file__).parents[2].parent / "shared"
DEEPSEEK = SHARED / "data/tokenizers/deepseek-v3/tokenizer.json"
NAUGHTY = SHARED / "data/hostile/naughty-strings"

WORLD = SHARED / "data/tokenizers/rwkv-world/rwkv_vocab_v20230424.txt"

CASES = ["bits", "bits-parity", "bpe", "bpe-deepseek-v3", "bytes", "world", "world-published"]
SPECIAL = ["<|endoftext|>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|EOT|>", "<s>", "</s>"]  # noqa: RUF001
CHARACTERS = st.characters(codec=None, categories=None)  # lone surrogates included

junk = st.text(CHARACTERS).map(lambda text: text.encode("utf-8", "surrogatepass"))
prose = st.text("ab \n\t.'/1é\u3000漢👩\u0301", max_size=300).map(str.encode)
special = st.sampled_from(SPECIAL).map(str.encode)
texts = st.lists(st.one_of(st.binary(), junk, prose, special), max_size=6).map(b"".join)
long_texts = st.tuples(
    texts, st.sampled_from([b"", b"word " * 200, "漢字".encode() * 1500, b"x" * 9000, b"\xff" * 9000])
)
documents = st.one_of(texts, st.tuples(long_texts.map(b"".join), texts).map(b"".join))

thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def train_tiny(path: Path) -> Path:
    """A byte-level BPE of 400 tokens with one special token, trained on its own author's words."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["the word that the words of a text end in, and then the next word\n"] * 5, trainer)
    library.save(str(path))
    return path


def write_world(path: Path) -> Path:
    """A vocabulary of RWKV's form: all bytes, and some longer tokens that share beginnings."""
    longer = [b"th", b"the", b" the", b"word", b" word", "é".encode(), "漢字".encode(), b"\r\n", b"    "]
    tokens = [bytes([value]) for value in range(256)] + longer
    path.write_text("".join(f"{i} {token!r} {len(token)}\n" for i, token in enumerate(tokens, start=1)), "utf-8")
    return path


@pytest.fixture(scope="module", params=CASES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    kind = TOKENIZERS[request.param.split("-")[0]]
    if request.param.startswith("bits"):
        return kind(kind.Config(parity="even" if request.param.endswith("parity") else "none"))
    if request.param == "bytes":
        return kind(kind.Config())
    if request.param == "bpe":
        return kind(kind.Config(file=str(train_tiny(tmp_path_factory.mktemp("bpe") / "tokenizer.json"))))
    if request.param == "world":
        path = write_world(tmp_path_factory.mktemp("world") / "vocabulary.txt")
        return kind(kind.Config(file=str(path), n_vocabulary=300))
    published = DEEPSEEK if request.param.startswith("bpe") else WORLD
    if not published.exists():
        pytest.skip(f"{published} is absent: it is test data that is not part of the repository")
    return kind(kind.Config(file=str(published)))


def join(parts: list[Tokens]) -> tuple[list[int], list[int]]:
    return np.concatenate([p.ids for p in parts]).tolist(), np.concatenate([p.n_bytes for p in parts]).tolist()


def feed(encoder: Encoder, pieces: list[bytes]) -> tuple[list[int], list[int]]:
    return join([*(encoder.feed(piece) for piece in pieces), encoder.finish()])


def cut(text: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(borders)]


def assert_exact(tokenizer: Tokenizer, text: bytes) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens.ids.tolist()) == text
    assert int(tokens.n_bytes.sum()) == len(text)
    assert tokens.ids.dtype == tokens.n_bytes.dtype == np.int32
    assert tokens.ids.shape == tokens.n_bytes.shape
    assert not tokens.ids.size or 0 <= tokens.ids.min() <= tokens.ids.max() < tokenizer.n_vocabulary
    assert tokenizer.mark not in tokens.ids


def test_every_registered_tokenizer_is_checked_here() -> None:
    assert sorted({case.split("-")[0] for case in CASES}) == sorted(TOKENIZERS)
    assert list(TOKENIZERS) == sorted(TOKENIZERS)


@thorough
@given(text=documents)
def test_any_bytes_come_back_with_exact_counts(tokenizer: Tokenizer, text: bytes) -> None:
    assert_exact(tokenizer, text)


@thorough
@given(text=documents)
def test_each_token_covers_the_bytes_it_says(tokenizer: Tokenizer, text: bytes) -> None:
    tokens, decoder = tokenizer.encode(text[:2000]), Decoder(tokenizer)  # one by one is slow where bits are tokens
    assert [len(decoder.feed([id_])) for id_ in tokens.ids.tolist()] == tokens.n_bytes.tolist()
    assert not decoder.held


@thorough
@given(text=documents, places=st.lists(st.integers(0, 20_000), max_size=12))
def test_feeding_in_pieces_equals_feeding_whole(tokenizer: Tokenizer, text: bytes, places: list[int]) -> None:
    whole = join([tokenizer.encode(text)])
    assert feed(tokenizer.encoder(), cut(text, places)) == whole


def test_feeding_byte_by_byte_equals_feeding_whole(tokenizer: Tokenizer) -> None:
    text = (
        "one word, then 漢字 and 👩‍🚀.\nnext line\n\n  third" * 20 + "字" * 2000
    ).encode() + b"\xf0\x9f bad \xed\xa0\x80"
    assert feed(tokenizer.encoder(), [text[i : i + 1] for i in range(len(text))]) == join([tokenizer.encode(text)])


@thorough
@given(text=documents, places=st.lists(st.integers(0, 20_000), max_size=6), stop=st.integers(0, 20_000))
def test_held_bytes_restore_an_encoder(tokenizer: Tokenizer, text: bytes, places: list[int], stop: int) -> None:
    head, tail = text[: stop % (len(text) + 1)], text[stop % (len(text) + 1) :]
    first = tokenizer.encoder()
    before = [first.feed(piece) for piece in cut(head, places)]
    second = tokenizer.encoder()
    assert second.feed(first.held).ids.size == 0
    assert second.held == first.held
    after = [*(second.feed(piece) for piece in cut(tail, places)), second.finish()]
    assert join([*before, *after, *[tokenizer.encode(b"")]]) == join([tokenizer.encode(text)])


def test_returned_and_held_bytes_are_all_that_was_fed(tokenizer: Tokenizer) -> None:
    encoder, n_returned = tokenizer.encoder(), 0
    for n_fed, piece in enumerate([b"some words and more of them "] * 50, start=1):
        n_returned += int(encoder.feed(piece).n_bytes.sum())
        assert n_returned + len(encoder.held) == n_fed * len(piece)


@pytest.mark.parametrize("unit", [b"x", b"word ", b"\n", b"\xff", "漢".encode()], ids=repr)
def test_what_is_held_back_is_bounded(tokenizer: Tokenizer, unit: bytes) -> None:
    encoder = tokenizer.encoder()
    for _ in range(20):
        encoder.feed(unit * 1000)
        assert len(encoder.held) < 4100


def test_a_finished_encoder_is_fresh(tokenizer: Tokenizer) -> None:
    encoder = tokenizer.encoder()
    feed(encoder, [b"first document ", b"ends in the middle of a word"])
    assert encoder.held == b""
    assert encoder.finish().ids.size == 0
    assert feed(encoder, [b"second"]) == feed(tokenizer.encoder(), [b"second"])


@pytest.mark.parametrize("name", SPECIAL)
def test_the_name_of_a_special_token_is_ordinary_text(tokenizer: Tokenizer, name: str) -> None:
    assert_exact(tokenizer, name.encode())
    assert len(tokenizer.encode(name.encode()).ids) > 1


def test_the_mark_stands_for_no_byte(tokenizer: Tokenizer) -> None:
    assert 0 <= tokenizer.mark < tokenizer.n_vocabulary
    ids = tokenizer.encode(b"text").ids.tolist()
    assert tokenizer.decode([tokenizer.mark, *ids, tokenizer.mark]) == b"text"


def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    for wrong in (-1, tokenizer.n_vocabulary):
        with pytest.raises(ContractError, match=str(wrong)):
            tokenizer.decode([wrong])


def test_an_empty_document_has_no_tokens(tokenizer: Tokenizer) -> None:
    assert (
        feed(tokenizer.encoder(), []) == feed(tokenizer.encoder(), [b""]) == join([tokenizer.encode(b"")]) == ([], [])
    )


def test_naughty_strings_come_back_exactly(tokenizer: Tokenizer) -> None:
    if not NAUGHTY.exists():
        pytest.skip(f"{NAUGHTY} is absent: it is test data that is not part of the repository")
    for file in (path for path in NAUGHTY.rglob("*") if path.is_file()):
        text = file.read_bytes()
        assert_exact(tokenizer, text)
        for line in text.splitlines(keepends=True):
            assert_exact(tokenizer, line)
