"""Merges that come and go follow from what was already read, and lose no byte."""

import random

import pytest
import torch
from bench.dynamic_merges import N_FIXED, Merges
from bench.dynamic_tokens import REFRESH_EVERY, Arm, Reader

WORDS = [b"the ", b"cat ", b"sat ", b"on ", b"a ", b"mat\n", b"\xff\x00", b"thinking ", b"then "]


def _text(seed: int, n: int = 30_000) -> bytes:
    draw = random.Random(seed)
    first, second = draw.sample(WORDS, 5), draw.sample(WORDS, 5)  # the second half forgets what the first taught
    return b"".join(draw.choice(first) for _ in range(n // 8)) + b"".join(draw.choice(second) for _ in range(n // 8))


def _small() -> Merges:
    return Merges(24, threshold=4, window=300, longest=12)


@pytest.mark.parametrize("seed", range(4))
def test_whoever_reads_the_tokens_alone_gets_the_bytes_and_the_same_merges(seed: int) -> None:
    text, at, writer, reader, back = _text(seed), 0, _small(), _small(), b""
    while at < len(text):
        tokens, at = writer.segment(text, at, 16)
        back += b"".join(reader.texts[token] for token in tokens)  # known before these tokens taught anything
        writer.observe(tokens)
        reader.observe(tokens)
        assert reader.texts == writer.texts
    assert back == text
    assert writer.n_demoted > 0, "nothing gave way, so that was not tested"
    assert max(writer.depths) > 1, "no merge was made of merges"


def test_the_future_changes_no_segmentation_before_the_longest_match() -> None:
    text = _text(0)
    for cut in (1_000, 7_001, 20_000):
        one, other, at = _small(), _small(), 0
        while at < cut - 16 * 12:
            tokens, after = one.segment(text, at, 16)
            assert other.segment(text[:cut], at, 16) == (tokens, after)
            one.observe(tokens)
            other.observe(tokens)
            at = after


def test_each_token_is_the_longest_known_beginning() -> None:
    merges, text, at = _small(), _text(1), 0
    while at < len(text):
        tokens, after = merges.segment(text, at, 16)
        known = set(merges.texts) - {b""}
        for token in tokens:
            begins = (text[at : at + n] for n in range(12, 0, -1))
            assert merges.texts[token] == next(piece for piece in begins if piece in known)
            at += len(merges.texts[token])
        merges.observe(tokens)
        assert at == after


def test_parts_are_there_as_long_as_what_they_make() -> None:
    merges, text, at = _small(), _text(2), 0
    while at < len(text):
        tokens, at = merges.segment(text, at, 16)
        merges.observe(tokens)
        assert len(merges) <= N_FIXED + 24
        for token in range(N_FIXED, len(merges)):
            left, right = merges.parts[token]
            assert merges.texts[token] == merges.texts[left] + merges.texts[right]
            assert merges.depths[token] == 1 + max(merges.depths[left], merges.depths[right])


def test_the_network_of_rows_learns_and_what_it_makes_is_used() -> None:
    torch.manual_seed(0)
    reader = Reader(Arm("merges", n_merges=64, ngrams_of="bytes"), _text(3, 120_000), rate=2e-3, d_model=32, seed=0)
    while len(reader.curve) < 5 * REFRESH_EVERY:
        reader.update()
    for table in (reader.model.embed, reader.model.head):
        assert len(reader.merges) > N_FIXED + 4
        assert all(bool(parameter.detach().abs().sum() > 0) for parameter in table.network.parameters())
        silent = table.network[2].weight
        before = table.make(torch.arange(N_FIXED, len(reader.merges))).detach()
        with torch.no_grad():
            silent.add_(1.0)
        assert not torch.equal(table.make(torch.arange(N_FIXED, len(reader.merges))).detach(), before)
        rows = table.rows(len(reader.merges))
        assert torch.equal(rows[N_FIXED:], (table.weight + table.made)[N_FIXED : len(reader.merges)])


def test_summed_gradients_teach_the_network_what_one_pass_would() -> None:
    torch.manual_seed(0)
    reader = Reader(Arm("merges", n_merges=64), _text(3, 120_000), rate=2e-3, d_model=32, seed=0)
    while len(reader.curve) < 2 * REFRESH_EVERY:
        reader.update()
    table, n = reader.model.head, len(reader.merges)
    target, x = torch.randint(0, n, (20,)), torch.randn(20, 32)
    table.zero_grad()
    torch.nn.functional.cross_entropy(x @ table.rows(n).T, target).backward()
    table.waiting.zero_().add_(table.weight.grad)
    table.zero_grad()
    table.learn(n, 1)
    ours = [parameter.grad.clone() for parameter in table.network.parameters()]
    table.zero_grad()
    made = torch.cat([torch.zeros(N_FIXED, 32), table.make(torch.arange(N_FIXED, n))])
    with torch.no_grad():  # rows as they are kept, gradient as if made anew
        made += table.made[:n] - made
    torch.nn.functional.cross_entropy(x @ (table.weight[:n] + made).T, target).backward()
    for mine, theirs in zip(ours, table.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)
