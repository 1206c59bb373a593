"""Segments depend on content alone."""

from hypothesis import given
from hypothesis import strategies as st

from livelm.tokenize.segments import LOOKAHEAD, MAX_BYTES, MIN_BYTES, split_segments
from livelm.tokenize.tokenizer_json import byte_alphabet

LONG = b"a" * MIN_BYTES


def test_a_cut_is_before_a_space_after_a_word() -> None:
    assert split_segments(LONG + b"a b") == ([LONG + b"a"], b" b")


def test_a_cut_is_between_a_single_newline_and_a_word() -> None:
    assert split_segments(LONG + b"\nb") == ([LONG + b"\n"], b"b")
    assert split_segments(LONG + "\n漢".encode()) == ([LONG + b"\n"], "漢".encode())


def test_no_cut_is_made_where_a_token_may_reach_across() -> None:
    for ending in (
        b"\n\nb",
        b"\n/b",
        b"\t b",
        "\u3000 b".encode(),
        "\n\u3000b".encode(),
        b"\n\xc2\xa0b",
        b"\n",
        b"\n\xe3",
    ):
        assert split_segments(LONG + ending) == ([], LONG + ending), ending


def test_a_forced_cut_keeps_characters_whole() -> None:
    for shift in range(4):
        text = b"x" * shift + "👩".encode() * (MAX_BYTES // 2)
        for segment in split_segments(text)[0]:
            assert MAX_BYTES - 4 < len(segment) <= MAX_BYTES
            segment.decode()


def test_junk_without_characters_is_cut_too() -> None:
    segments, rest = split_segments(b"\x80" * 3 * MAX_BYTES)
    assert [len(segment) for segment in segments] == [MAX_BYTES] * 2
    assert len(rest) == MAX_BYTES


@given(
    st.lists(
        st.sampled_from([b"a", b" ", b"\n", b"\xe3", b"\x81", b"\xf0\x9f", b"word " * 30, b"b" * 3000]), max_size=40
    )
)
def test_segments_and_rest_are_the_text_and_the_rest_is_bounded(parts: list[bytes]) -> None:
    segments, rest = split_segments(b"".join(parts))
    assert b"".join([*segments, rest]) == b"".join(parts)
    assert all(MIN_BYTES <= len(segment) <= MAX_BYTES for segment in segments)
    assert len(rest) < MAX_BYTES + LOOKAHEAD


def test_the_byte_alphabet_is_that_of_byte_level_vocabularies() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["a"], alphabet["Ń"]) == (0x20, 0x0A, 0x61, 0xAD)
