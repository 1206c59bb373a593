"""What a watch finds surprising: rare words, costly bytes, groups that lack something; and how often it says so."""

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livelm.config import validate
from livelm.errors import ConfigError
from livelm.types import Document
from livelm.watch.cut import MAX_BYTES, Cutter, Part
from livelm.watch.expected import Expectation, tail
from livelm.watch.frequencies import Frequencies, rarest
from livelm.watch.groups import Groups
from livelm.watch.level import BURST, Level
from livelm.watch.settings import WatchSettings
from livelm.watch.spans import costliest
from livelm.watch.watcher import Watcher
from livelm.watch.webhook import Webhook
from livelm.watch.words import CODE_VALUES, Words, join, number


def texts(words: Words, line: bytes) -> list[bytes]:
    return [word.text for word in words.read(line)]


def lines_of(*lines: bytes) -> list[Part]:
    return [Part(line, "log", place, is_line=True) for place, line in enumerate(lines, 1)]


def run(watcher: Watcher, parts: Iterable[Part]) -> list[dict[str, Any]]:
    return [record for part in parts for record in watcher.take(part)]


def requests(n: int, seed: int = 0) -> list[bytes]:
    r = random.Random(seed)
    pages = [b"/", b"/login", b"/search", b"/cart"]
    return [b"%02d:%02d GET %s from 10.0.%d.%d took %d ms\n" % (i // 60 % 24, i % 60, r.choice(pages), r.randrange(99),
            r.randrange(99), r.randrange(300)) for i in range(n)]  # fmt: skip


def settings(**values: Any) -> WatchSettings:
    return validate(WatchSettings, values, "watch")


# words


def test_words_with_digits_are_left_out() -> None:
    assert texts(Words(), b"12:04:55 host7 error at 0x1f in main \xff") == [b"error", b"at", b"in", b"main", b"\xff"]


def test_numbers_that_come_back_are_codes_and_numbers_that_do_not_are_not() -> None:
    words = Words()
    for i in range(400):
        words.read(b"status %d size %d" % (200 + i % 3, i * 7 % 1000) if i % 2 else b"E%d" % (i % 5))
    assert b"E4" in texts(words, b"E4")
    assert texts(words, b"status 200 size 41") == [b"status", b"size"], "one shape: sizes make all such numbers data"
    codes = Words()
    for i in range(400):
        codes.read(b"status %d" % (200 + i % 3))
    assert texts(codes, b"status 201") == [b"status", b"201"]


def test_a_shape_with_too_many_values_is_never_asked_again() -> None:
    words = Words()
    for i in range(CODE_VALUES + 1):
        words.read(b"n%d" % i)
    for _ in range(10_000):
        words.read(b"n1")
    assert texts(words, b"n1") == []


def test_words_keep_no_more_than_they_need() -> None:
    words = Words()
    for i in range(5000):
        words.read(b"%s1" % (b"%d" % i).translate(bytes(range(97, 107)).rjust(58, b"x").ljust(256, b"x")))
        words.read(b"x" * 1000)
    assert len(words.state_dict()["shapes"]) <= 1024
    assert texts(words, b"y" * 1000) == []


# frequencies


def test_rarity_is_the_logarithm_of_a_share() -> None:
    frequencies = Frequencies(half_life=1e12, max_items=1024)
    for i in range(15):
        frequencies.add([1, 2] if i % 2 else [1])
    assert frequencies.rarity(1) == pytest.approx(math.log2(16 / 15.5))
    assert frequencies.rarity(2) == pytest.approx(math.log2(16 / 7.5))
    assert frequencies.rarity(3) == pytest.approx(5) == pytest.approx(frequencies.ceiling)
    assert frequencies.absence(1) == pytest.approx(5)


def test_a_sighting_counts_half_after_the_half_life() -> None:
    frequencies = Frequencies(half_life=100, max_items=1024)
    frequencies.add([1])
    for _ in range(100):
        frequencies.add([2])
    share = 2.0 ** -frequencies.rarity(1)
    assert share == pytest.approx((0.5 + 0.5) / (frequencies.n + 1), rel=1e-6)


def test_half_lives_survive_many_documents() -> None:
    frequencies = Frequencies(half_life=100, max_items=1024)
    for i in range(20_000):
        frequencies.add([i % 2])
    assert frequencies.n == pytest.approx(1 / (1 - 2 ** (-1 / 100)), rel=1e-6)
    assert frequencies.rarity(0) == pytest.approx(1, abs=0.02)


def test_the_rarest_and_oldest_are_forgotten_first() -> None:
    frequencies = Frequencies(half_life=1000, max_items=1024)
    for i in range(5000):
        frequencies.add([0, 10 + i])
    assert len(frequencies.state_dict()["items"]) <= 1024
    assert frequencies.rarity(0) < 0.01
    assert frequencies.rarity(10 + 4999) < frequencies.ceiling == frequencies.rarity(10)


def test_what_most_documents_have_is_missed() -> None:
    frequencies = Frequencies(half_life=1e9, max_items=1024)
    for i in range(100):
        frequencies.add([1, 2] if i % 4 else [1])
    assert set(frequencies.absences({3})) == {1, 2}
    assert frequencies.absences({1})[2] == pytest.approx(math.log2(101 / 25.5))
    assert not frequencies.absences({1, 2})


def test_the_rarest_four_or_eighth_are_averaged() -> None:
    assert rarest([1.0, 2.0, 3.0, 4.0, 5.0]) == 3.5
    assert rarest([3.0]) == 3.0
    assert rarest([]) == 0.0
    assert rarest([8.0] * 5 + [1.0] * 35) == 8.0


# costs


@pytest.mark.parametrize("draw", [np.random.default_rng(0).pareto, np.random.default_rng(0).exponential])
def test_no_distribution_is_surprising_more_often_than_its_bits_say(draw: Callable[..., Any]) -> None:
    values = draw(3.0, 20_000)
    bits = np.array([tail(value - values.mean(), values.std()) for value in values])
    for level in (1.0, 2.0, 4.0, 7.0):
        assert (bits >= level).mean() <= 2.0**-level


def test_what_costs_less_is_not_surprising() -> None:
    assert tail(-5.0, 1.0) == tail(0.0, 1.0) == tail(3.0, 0.0) == 0.0


def test_a_kind_is_judged_by_its_own_costs_once_it_is_known() -> None:
    expectation = Expectation()
    for i in range(1000):
        expectation.learn(i % 2, 10, 10.0 if i % 2 else 30.0)
    assert expectation.judge(0, 10).expected == pytest.approx(30, abs=0.5)
    assert expectation.judge(1, 20).expected == pytest.approx(20, abs=1)
    assert expectation.judge(7, 10).expected == pytest.approx(20, abs=0.5), "an unknown kind costs what all do"
    assert expectation.judge(0, 10).deviation < expectation.judge(7, 10).deviation / 2
    for kind in range(20_000):
        expectation.learn(kind, 1, 1.0)
    assert len(expectation.state_dict()["kinds"]) == 1 << 14


# levels


def alarms(level: Level, scores: Iterable[float], gap_s: float = 0.0, ceiling: float = 20.0) -> list[int]:
    found = []
    for i, score in enumerate(scores):
        level.pass_time(gap_s)
        if level.is_alarm(score, level.threshold(ceiling)):
            found.append(i)
        level.count(score, score, ceiling)
    return found


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.002])
def test_the_share_of_alarms_is_the_one_asked_for(rate: float) -> None:
    r = random.Random(0)
    found = alarms(Level(settings(rate=rate)), (r.expovariate(0.5) for _ in range(30_000)))
    assert 0.6 * rate * 30_000 < len(found) <= rate * 30_000 + BURST
    assert found[0] >= 200


def test_alarms_are_the_highest_scores() -> None:
    r = random.Random(1)
    scores = [r.expovariate(0.5) for _ in range(20_000)]
    found = alarms(Level(settings(rate=0.01)), scores)
    late = [scores[i] for i in found if i > 10_000]
    assert min(late) > np.quantile(scores, 0.985)


def test_the_threshold_follows_a_level_that_moves() -> None:
    r = random.Random(2)
    scores = [r.expovariate(0.5) + (8 if i > 20_000 else 0) for i in range(60_000)]
    level = Level(settings(rate=0.01))
    found = alarms(level, scores)
    assert len([i for i in found if i > 50_000]) == pytest.approx(100, abs=40)
    assert len(found) <= 600 + BURST
    assert level.held_back > 0, "right after the move far too many are above"


def test_a_storm_of_equal_scores_costs_no_more_than_the_budget() -> None:
    level = Level(settings(rate=0.001))
    found = alarms(level, [1.0] * 5000 + [19.0] * 5000)
    assert 10 <= len(found) <= 0.001 * 10_000 + BURST
    assert level.held_back >= 4900 - len(found)


def test_alarms_per_day_go_by_the_clock() -> None:
    r = random.Random(3)
    scores = [r.expovariate(0.5) for _ in range(40_000)]
    day = 86_400 / 4_000  # seconds between documents: ten days in all
    assert len(alarms(Level(settings(per_day=20)), scores, gap_s=day)) == pytest.approx(200, abs=60)
    assert len(alarms(Level(settings(per_day=20)), scores, gap_s=day / 10)) == pytest.approx(20, abs=12)


def test_rarity_counts_only_where_it_is_rare() -> None:
    every, hardly = Level(settings()), Level(settings())
    for i in range(1000):
        every.count(20.0, 20.0, 20.0)
        hardly.count(2.0, 20.0 if i == 500 else 2.0, 20.0)
    assert every.cap(20.0, 20.0) < 2.1
    assert hardly.cap(20.0, 20.0) == 20.0
    assert hardly.cap(3.0, 20.0) == 3.0
    assert every.cap(1.0, 20.0) == 1.0


def test_a_rate_of_one_says_everything() -> None:
    assert len(alarms(Level(settings(rate=1)), [0.0, 5.0, 0.0])) == 3


# documents


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_lines_do_not_depend_on_where_pieces_are_cut(text: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    cutter, parts = Cutter("auto"), []
    for start, stop in itertools.pairwise(places):
        parts += cutter.take(Document(text=text[start:stop], id="a", source="tail", offset=start, last=False))
        restored = Cutter("auto")
        restored.load_state_dict(json.loads(json.dumps(cutter.state_dict())))
        cutter = restored
    parts += cutter.take(Document(text=b"", id="a", source="tail", offset=len(text)))
    assert [part.text for part in parts] == [line for line in re.split(rb"(?<=\n)", text) if line]
    assert [part.place for part in parts] == list(range(1, len(parts) + 1))


def test_long_lines_and_documents_come_in_parts() -> None:
    for by, source in (("line", "tail"), ("document", "crawl")):
        text = b"x" * (2 * MAX_BYTES + 5)
        parts = Cutter(by).take(Document(text=text, id="a", source=source))  # type: ignore[arg-type]
        assert [len(part.text) for part in parts] == [MAX_BYTES, MAX_BYTES, 5]


def test_what_a_document_is_follows_the_source() -> None:
    def n_parts(source: str, name: str) -> int:
        return len(Cutter("auto").take(Document(text=b"a\nb\nc\n", id=name, source=source)))

    assert n_parts("files", "a.log") == n_parts("tail", "a@0") == n_parts("stdin", "stdin") == 3
    assert n_parts("files", "a.jsonl#4") == n_parts("files", "a.jsonl.gz#4") == n_parts("crawl", "http://a/") == 1


def test_what_is_only_read_along_is_left_out_and_many_documents_may_be_open() -> None:
    cutter = Cutter("document")
    document = Document(text=b"0123456789", id="a", source="sessions", context=((2, 4), (8, 10)))
    assert [part.text for part in cutter.take(document)] == [b"014567"]
    parts = []
    for i in range(3000):
        parts += cutter.take(Document(text=b"x", id=str(i), source="mix", last=False))
    assert len(parts) == 3000 - 1024
    assert len(cutter.finish()) == 1024


def test_the_costliest_words_are_marked() -> None:
    text = b"all is well but Xyzzy is not"
    bits = np.full(len(text), 0.1)
    bits[16:21] = 4.0
    assert [text[s.start : s.stop] for s in costliest(text, bits)] == [b"Xyzzy"]
    assert [text[s.start : s.stop] for s in costliest(text, bits, [b"well"])] == [b"well", b"Xyzzy"]
    assert costliest(b"", np.empty(0)) == []


# groups


def close_one(groups: Groups, kinds: list[int], key: bytes = b"k") -> float:
    for kind in kinds:
        group, _ = groups.add(key, kind, 0)
    (group,) = groups.drain()
    return groups.close(group).rarity


def test_groups_that_lack_an_end_or_have_something_new_or_another_order_stand_out() -> None:
    groups, r = Groups(10, 1000, 1e9, 4096), random.Random(0)
    a, b, c, d, e = (join(i) for i in range(5))
    usual = [close_one(groups, [a, *r.choice(([b, c], [c, b], [b, b, c])), d]) for _ in range(500)][100:]
    for odd in ([a, b], [a, b, c, e, d], [a, d, b, c], [d]):
        assert close_one(groups, odd) > max(usual), odd


def test_the_group_untouched_for_longest_is_closed_and_memory_is_bounded() -> None:
    groups = Groups(3, 1000, 1e9, 4096)
    for line, key in enumerate((b"a", b"b", b"c", b"a", b"d")):
        groups.add(key, 5, line)
    assert [group.key for group in groups.surplus(5)] == [b"b"]
    assert [group.key for group in groups.surplus(1003)] == [b"c", b"a"], "idle for a thousand lines"
    for i in range(5000):
        group, _ = groups.add(b"a", join(i), 1004)
        groups.keep_example(join(i), b"x" * 10_000)
    assert len(group.kinds) <= 512
    assert len(group.pairs) <= 513
    assert len(groups.state_dict()["examples"]) <= 4096


# watching


def test_a_planted_line_is_the_most_surprising_and_says_why() -> None:
    lines = requests(600)
    lines[450] = b"07:30 kernel panic: out of memory from 10.0.1.2\n"
    found = [r for r in run(Watcher(settings(rate=1)), lines_of(*lines)) if r["kind"] == "surprise"]
    assert len(found) == 600
    worst = max(found[200:], key=lambda record: record["score"])
    assert worst["line"] == 451
    assert {word for word, _ in worst["rare"]} <= {"kernel", "panic:", "out", "of", "memory"}
    marked = [worst["text"][int(start) : int(stop)] for start, stop, _ in worst["spans"]]
    assert any("kernel panic:" in span for span in marked)
    assert "GET" in worst["missing"]
    assert worst["bits_per_byte"] == pytest.approx(worst["bits"] / worst["n_bytes"], abs=1e-3)
    assert worst["excess"] > 1


def test_bytes_that_cost_more_than_such_lines_do_are_found_without_any_rare_word() -> None:
    chooser = random.Random(4)
    lines = [b"session 1234567890 is open\n"] * 700
    lines[600] = b"session %d is open\n" % chooser.randrange(10**9, 10**10)
    found = [r for r in run(Watcher(settings(rate=1)), lines_of(*lines)) if r["kind"] == "surprise"]
    worst = max(found[100:], key=lambda record: record["score"])
    assert worst["line"] == 601
    assert worst["cost"] > worst["rarity"]


def test_only_few_are_said_and_the_planted_one_is_among_them() -> None:
    lines = requests(3000)
    lines[2500] = b"07:30 disk failure on sda, remounting read-only\n"
    found = [r for r in run(Watcher(settings(rate=0.001)), lines_of(*lines)) if r["kind"] == "surprise"]
    assert 2501 in {record["line"] for record in found}
    assert len(found) <= 0.001 * 3000 + BURST


def test_stopping_anywhere_equals_never_stopping() -> None:
    lines = requests(500) + [b"\n", b"\xff\xfe\x00 broken \n", b"id=7 a\n"] * 20 + requests(100, seed=5)
    keyed = settings(rate=0.05, group_by=r"from (\S+)", groups=20, burn_in=20)
    for asked in (settings(rate=0.05, burn_in=50), keyed):
        whole = Watcher(asked)
        expected = run(whole, lines_of(*lines)) + list(whole.finish())
        watcher, found = Watcher(asked), []
        for i, part in enumerate(lines_of(*lines)):
            if i in (1, 333, 520):
                state = watcher.state_dict()
                watcher = Watcher(asked)
                watcher.load_state_dict(state)
            found += watcher.take(part)
        assert found + list(watcher.finish()) == expected
        numbers = [record["surprise"] for record in expected if record["kind"] == "surprise"]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= 2


def test_a_page_of_another_kind_stands_out_although_every_page_has_new_words() -> None:
    r = random.Random(0)

    def page(letters: str, n: int) -> bytes:
        return " ".join("".join(r.choices(letters, k=r.randint(2, 8))) for _ in range(n)).encode()

    pages = [page("abcdefghij", 120) for _ in range(80)]
    pages[70] = r.randbytes(600).replace(b"\n", b" ")
    parts = [Part(text, f"page {i}", 1, is_line=False) for i, text in enumerate(pages)]
    found = [record for record in run(Watcher(settings(rate=1, burn_in=0)), parts) if record["kind"] == "surprise"]
    assert max(found[40:], key=lambda record: record["score"])["id"] == "page 70"


def test_drift_is_said_apart_from_surprises() -> None:
    r = random.Random(0)
    words = [bytes(r.choices(b"abcdefghijklmnop", k=6)) for _ in range(300)]
    lines = requests(1500) + [b" ".join(r.choices(words, k=9)) + b"\n" for _ in range(800)]
    found = run(Watcher(settings(rate=0.001)), lines_of(*lines))
    drifts = [record for record in found if record["kind"] == "drift"]
    assert drifts
    assert all(record["document"] > 1400 for record in drifts if record["signal"] == "bits_per_byte")
    assert "bits_per_byte" in {record["signal"] for record in drifts}


def test_groups_of_lines_are_one_document_and_lines_without_a_key_are_their_own() -> None:
    r, lines = random.Random(0), []
    for i in range(300):
        steps = [b"begin job=%d\n", b"read job=%d\n", b"write job=%d\n", b"end job=%d\n"]
        for step in steps[:2] if i == 250 else steps:
            lines.append(step % i)
        if r.random() < 0.2:
            lines.append(b"cron tick\n")
    watcher = Watcher(settings(rate=1, group_by=r"job=(\d+)", groups=5))
    found = run(watcher, lines_of(*lines)) + list(watcher.finish())
    groups = [record for record in found if "group" in record]
    assert len(groups) == 300
    worst = max(groups[100:], key=lambda record: record["score"])
    assert worst["group"] == "250"
    assert any("end job" in text for text in worst["missing"])
    assert worst["n_lines"] == 2
    assert groups[-1]["lines"][-1]["text"].startswith("end job")
    assert len([record for record in found if "group" not in record]) == lines.count(b"cron tick\n")


def test_a_group_is_said_as_soon_as_it_stands_out_and_only_once() -> None:
    lines = [step % i for i in range(400) for step in (b"begin job=%d\n", b"work job=%d\n", b"end job=%d\n")]
    lines[350 * 3 + 1 : 350 * 3 + 1] = [b"panic stack overflow in job=350\n", b"core dumped by job=350\n"]
    watcher = Watcher(settings(rate=0.01, group_by=r"job=\d+", groups=50, burn_in=100))
    found = [record for record in run(watcher, lines_of(*lines)) + list(watcher.finish()) if "group" in record]
    of_it = [record for record in found if record["group"] == "job=350"]
    assert len(of_it) == 1
    assert not of_it[0]["closed"]
    assert of_it[0]["line"] <= 350 * 3 + 4
    assert any("panic" in line["text"] for line in of_it[0]["lines"])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n" * 1000,
        b"\x00" * 5000,
        bytes(range(256)) * 40,
        b"\xff\xfe\n" * 200,
        "\u202e\U0001f642 \n".encode() * 99,
    ],
    ids=["nothing", "blank", "zeros", "all bytes", "not text", "not ASCII"],
)
def test_any_bytes_are_taken(text: bytes) -> None:
    cutter, watcher = Cutter("auto"), Watcher(settings(rate=1))
    found = run(watcher, cutter.take(Document(text=text, id="\udcff", source="tail")))
    for record in found:
        json.dumps(record, allow_nan=False)
    assert watcher.n_bytes == len(text)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rate": 0}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"per_day": -1}, "per_day"),
        ({"by": "word"}, "by"),
        ({"group_by": "("}, "not a regular expression"),
        ({"group_by": "x*"}, "no text at all"),
        ({"group_by": "(a)(b)"}, "2 groups"),
        ({"group_by": "a", "by": "document"}, "by='document'"),
        ({"groups": 0}, "groups"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace("(", "[(]")):
        settings(**wrong)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/",
        "http://",
        "localhost:80",
        "http://u:p@a/",
        "http://a/\n",
        "http://[::1",
        "http://a:99999/",
        "http://a..b/",
    ],
)
def test_a_webhook_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--webhook"):
        Webhook(url)


def test_numbers_of_words_stay_the_same() -> None:
    assert number(b"error") == 7950197233372432140, "what a checkpoint counted must be found again by the next process"
    assert join(1, 2) != join(2, 1)
