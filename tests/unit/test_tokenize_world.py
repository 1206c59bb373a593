"""The World tokenizer: longest match first, exact bytes, any cut, and files that are not a vocabulary."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.errors import ConfigError, ContractError
from livelm.tokenize.world import World, WorldConfig
from livelm.types import Tokens

WORDS = [b"the", b"there", b"therefore", b" the", b"\n\n", "漢字".encode(), b"\xe6\xbc", b"ab", b"bcd", b"abcde"]
LINES = [f"{byte + 1} {bytes([byte])!r} 1" for byte in range(256)]
LINES += [f"{257 + i} {word!r} {len(word)}" for i, word in enumerate(WORDS)]


def write(folder: Path, lines: list[str]) -> str:
    path = folder / "vocabulary.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(WorldConfig(file=write(tmp_path_factory.mktemp("world"), LINES), n_vocabulary=300))


@pytest.fixture(scope="module")
def published(shared: Callable[[str], Path]) -> World:
    return World(WorldConfig(file=str(shared("tokenizers/rwkv-world/rwkv_vocab_v20230424.txt"))))


def longest_first(text: bytes, tokens: dict[bytes, int]) -> list[int]:
    """What the tokenizer computes, from its definition."""
    found, at = [], 0
    while at < len(text):
        best = max((t for t in tokens if text.startswith(t, at)), key=len)
        found.append(tokens[best])
        at += len(best)
    return found


texts = st.lists(st.one_of(st.binary(max_size=8), st.sampled_from(WORDS)), max_size=12).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_the_longest_match_comes_next(world: World, text: bytes) -> None:
    tokens = {bytes([byte]): byte + 1 for byte in range(256)} | {word: 257 + i for i, word in enumerate(WORDS)}
    assert world.encode(text).ids.tolist() == longest_first(text, tokens)


@settings(max_examples=200, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(0, 100), max_size=6))
def test_pieces_give_what_the_whole_gives(world: World, text: bytes, cuts: list[int]) -> None:
    encoder, parts, start = world.encoder(), [], 0
    for cut in [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]:
        parts.append(encoder.feed(text[start:cut]))
        start = cut
        restored = world.encoder()
        assert restored.feed(encoder.held).ids.size == 0
        assert restored.held == encoder.held
    parts.append(encoder.finish())
    assert encoder.held == b""
    assert [i for part in parts for i in part.ids] == world.encode(text).ids.tolist()
    assert world.decode([i for part in parts for i in part.ids]) == text
    assert sum(int(part.n_bytes.sum()) for part in parts) == len(text)


def test_what_may_become_longer_is_held_back(world: World) -> None:
    encoder = world.encoder()
    assert encoder.feed(b"the").ids.size == 0
    assert encoder.held == b"the"
    assert encoder.feed(b"refor").ids.size == 0
    tokens = encoder.feed(b"x")  # the longest match was `there`; the bytes after it begin nothing longer
    assert [world.decode([i]) for i in tokens.ids] == [b"there", b"f", b"o", b"r", b"x"]
    assert encoder.held == b""


def test_a_failed_longer_match_returns_to_the_longest_complete_one(world: World) -> None:
    assert [world.decode([i]) for i in world.encode(b"abcdabcde").ids] == [b"ab", b"c", b"d", b"abcde"]


def test_the_mark_stands_for_no_byte_and_no_text_gives_it(world: World) -> None:
    assert world.mark == 0
    assert world.decode([0, 258, 0]) == b"there"
    assert 0 not in world.encode(bytes(range(256))).ids


@pytest.mark.parametrize("wrong", [-1, 300])
def test_an_id_outside_the_vocabulary_is_refused(world: World, wrong: int) -> None:
    with pytest.raises(ContractError, match=str(wrong)):
        world.decode([wrong])


def test_the_published_vocabulary_is_read_whole(published: World) -> None:
    assert published.n_vocabulary == 65_536
    assert published.decode([65_529]) == b" " * 128
    assert published.decode([65_530]) == b""
    assert published.encode(b" " * 300).ids.tolist() == [65_529, 65_529, *published.encode(b" " * 44).ids.tolist()]


def test_every_published_token_is_the_longest_match_of_itself(published: World) -> None:
    for id_ in range(1, 65_530):
        assert published.encode(published.decode([id_])).ids.tolist() == [id_]


def test_published_tokens_of_real_text_come_back_with_exact_counts(
    published: World, shared: Callable[[str], Path]
) -> None:
    text = shared("text/tinyshakespeare/input.txt").read_bytes()[:200_000] + bytes(range(256))
    tokens: Tokens = published.encode(text)
    assert published.decode(tokens.ids.tolist()) == text
    assert int(tokens.n_bytes.sum()) == len(text)
    assert len(tokens.ids) < len(text) / 3
    pieces = World.encoder(published)
    parts = [pieces.feed(text[at : at + 77]) for at in range(0, len(text), 77)] + [pieces.finish()]
    assert [i for part in parts for i in part.ids] == tokens.ids.tolist()


FAULTS = {
    "not a line": (["hello"], "line 1 is 'hello'"),
    "wrong length": ([*LINES, "400 'abc' 4"], "do not agree"),
    "not a literal": ([*LINES, "290 __import__('os') 3"], "line 267"),
    "a number": ([*LINES, "290 12 2"], "do not agree"),
    "an empty token": ([*LINES, "290 '' 0"], "do not agree"),
    "twice the same id": ([*LINES, "257 'zz' 2"], "id 257 is defined twice"),
    "twice the same bytes": ([*LINES, "290 'the' 3"], "two ids to the same bytes"),
    "the mark": ([*LINES, "0 'zz' 2"], "id 0 is not between 1 and 299"),
    "beyond the table": ([*LINES, "300 'zz' 2"], "id 300 is not between 1 and 299"),
    "a byte is missing": (LINES[:65] + LINES[66:], "0x41 is missing"),
    "far too deep": ([*LINES, "290 " + "(" * 3000 + " 2"], "line 267"),
    "nothing": ([], "0 of the 256"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_vocabulary_is_refused_by_its_line(tmp_path: Path, fault: str) -> None:
    lines, said = FAULTS[fault]
    with pytest.raises(ConfigError, match=said.replace("(", "\\(")):
        World(WorldConfig(file=write(tmp_path, lines), n_vocabulary=300))


def test_a_file_that_is_absent_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        World(WorldConfig(file=str(tmp_path / "absent.txt")))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        World(WorldConfig(file=str(tmp_path / "binary")))
