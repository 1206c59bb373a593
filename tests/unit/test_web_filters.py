"""Which texts are refused, and under which name."""

# ruff: noqa: RUF001  (Chinese has its own commas)

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livelm.sources.web.filters import DropLog, FilterSettings, TextFilter
from livelm.sources.web.page import PageReader, PageSettings

TEXT = Path(__file__).parents[2].parent / "shared" / "data" / "text"
WEB = TEXT / "openwebtext-1000" / "openwebtext-1000.jsonl.gz"
UDHR = TEXT / "udhr" / "udhr-html.zip"

ENGLISH = (
    "The harbour was quiet that morning, and the boats that had come in late lay side by side with their nets to dry.\n"
    "An old man sat on the wall to mend a rope, while two children asked him questions about the weather and the sea.\n"
    "He answered each of them slowly, because he had learned that patience is a kind of knowledge to be practised.\n"
    "When the sun rose above the hills, they could hear the market being set up in the square behind the church."
)
GERMAN = (
    "Der Hafen lag an diesem Morgen still, und die Boote, die spät gekommen waren, lagen mit ihren Netzen beisammen.\n"
    "Ein alter Mann saß auf der Mauer und flickte ein Seil, während zwei Kinder nach Wetter und See fragten.\n"
    "Er antwortete ihnen langsam, denn er hatte gelernt, dass Geduld eine Art von Wissen ist, die man üben muss.\n"
    "Als die Sonne über die Hügel stieg, hörten sie, wie hinter der Kirche auf dem Platz der Markt aufgebaut wurde."
)
CHINESE = (
    "那天早晨港口很安静，晚归的船并排停着，渔网挂在桅杆上晾干。一位老人坐在墙上修补绳子，两个孩子不停地问他天气和大海的事情。"
    "他慢慢地回答每一个问题，因为他早已明白，耐心也是一种需要练习的知识。太阳从山后升起的时候，他们听见教堂后面的广场上传来摆设集市的声音。"
    "卖鱼的女人大声喊着价钱，面包店的香味飘过街道，几只猫从屋顶上跳下来，跟在送牛奶的车后面。老人把绳子卷好，对孩子们说，今天下午会起风，最好早点回家。"
    "孩子们笑着跑开了，他们的脚步声在石板路上响了很久。港口又安静下来，只剩下海水轻轻拍打着船身，远处的灯塔在阳光里显得格外白。"
)
THAI = (
    "เช้าวันนั้นท่าเรือเงียบสงบ "
    "เรือที่กลับมาช้าจอดเรียงกันและตากอวนไว้ให้แห้ง "
    "ชายชราคนหนึ่งนั่งซ่อมเชือกอยู่บนกำแพง "
    "เด็กสองคนถามเขาเรื่องอากาศและทะเล เขาตอบช้าๆ "
    "เพราะเขาเรียนรู้มานานแล้วว่าความอดทนเป็นความรู้ชนิดหนึ่งที่ต้องฝึกฝน "
    "เมื่อพระอาทิตย์ขึ้นเหนือภูเขา "
    "พวกเขาได้ยินเสียงตลาดที่กำลังตั้งร้านอยู่หลังโบสถ์ "
    "กลิ่นขนมปังลอยมาตามถนน แมวหลายตัวกระโดดลงจากหลังคาเพื่อวิ่งตามรถส่งนม"
)


def reason(text: str, **changes: object) -> str | None:
    return TextFilter(FilterSettings.model_validate_json(json.dumps(changes))).reason(text)


@pytest.mark.parametrize("text", [ENGLISH, GERMAN, CHINESE, THAI])
def test_good_prose_passes_in_any_script(text: str) -> None:
    assert reason(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Short.", "too_short"),
        (ENGLISH.replace("e", "\ufffd"), "garbled"),
        (ENGLISH + " Lorem ipsum dolor sit amet.", "lorem_ipsum"),
        ("\n".join(f"• {line}" for line in ENGLISH.split("\n")), "bullets"),
        ("\n".join(f"{line[:-1]} {i}..." for i, line in enumerate(ENGLISH.split("\n"))), "ellipses"),
        ((ENGLISH.split("\n")[0] + "\n") * 4, "duplicate_lines"),
        ("\n".join(f"Menu entry {i}." for i in range(60)), "short_lines"),
        (
            "\n".join(f"{line[:-1]} and so on, {i}th and last" for i, line in enumerate(ENGLISH.split("\n"))),
            "no_punctuation",
        ),
        ("Supercalifragilisticexpialidocious. " * 20, "few_words"),
        (ENGLISH.replace(" ", " #", 12), "symbols"),
        (" ".join(f"{i}{'qwertzuiop' * 3}." for i in range(60)), "word_length"),
        (" ".join(f"{i}.5 {i * 7} ab" for i in range(60)) + " end.", "few_letters"),
        (ENGLISH.replace("\n", " ") + " " + ENGLISH.replace("\n", " "), "repetition"),
        (CHINESE + CHINESE, "repetition"),
        (CHINESE[:90], "too_short"),
        (CHINESE[:90], "few_words"),
    ],
)
def test_each_fault_has_its_name(text: str, name: str) -> None:
    assert reason(text, min_characters=50 if name == "few_words" else 200, max_characters=5000) == name


def test_limits_are_settings() -> None:
    assert reason(ENGLISH, max_characters=300) == "too_long"
    assert reason("Short.", min_characters=0, min_words=0, max_short_lines=1.0) is None


def test_only_wanted_languages_pass() -> None:
    assert reason(GERMAN, languages=["en"]) == "language"
    assert reason(GERMAN, languages=["en", "de"]) is None
    assert reason(CHINESE, languages=["zh"]) is None
    assert reason(THAI, languages=["th"]) is None
    assert reason(ENGLISH, languages=["en"], min_language_score=1.0) == "language"


@pytest.mark.skipif(not WEB.exists(), reason="shared/data/text is absent")
def test_most_chosen_web_texts_pass() -> None:
    chosen = TextFilter(FilterSettings())
    with gzip.open(WEB, "rt") as lines:
        found = Counter(chosen.reason(json.loads(line)["text"]) for line in lines)
    assert found[None] > 900, found


@pytest.mark.skipif(not UDHR.exists(), reason="shared/data/text is absent")
def test_no_language_is_shut_out() -> None:
    reader, chosen = PageReader(PageSettings(), "livelm"), TextFilter(FilterSettings())
    refused: dict[str, str] = {}
    with zipfile.ZipFile(UDHR) as files:
        names = [name for name in files.namelist() if name.endswith(".html")]
        for name in names:
            page = reader.read(files.read(name), {"content-type": "text/html"}, "https://example.org/")
            if why := page.reason or chosen.reason(page.text):
                refused[name] = why
    assert len(refused) < 0.03 * len(names), refused  # four files hold a sentence only


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=600) | st.text(alphabet="ab .\n#…•\ud800ก日\u0301", max_size=600))
def test_no_text_makes_it_fail(text: str) -> None:
    FILTER.reason(text)


FILTER = TextFilter(FilterSettings(min_characters=0, min_words=0))


def test_the_drop_log_counts_all_and_keeps_the_latest_few() -> None:
    log = DropLog(n_samples=2)
    for i in range(5):
        log.add("too_short", f"https://example.org/{i}", "x" * 1000)
    log.add("robots", "https://example.org/")
    kept = json.loads(json.dumps(log.to_json()))
    assert list(kept) == ["too_short", "robots"]
    assert kept["too_short"]["n"] == 5
    assert [s["url"][-1] for s in kept["too_short"]["samples"]] == ["3", "4"]
    assert len(kept["too_short"]["samples"][0]["text"]) == 200
    assert kept["robots"]["samples"] == [{"url": "https://example.org/", "text": ""}]


def test_the_drop_log_is_bounded() -> None:
    log = DropLog()
    for i in range(1000):
        log.add(f"reason {i}", "")
    assert len(log.counts) <= DropLog.MAX_REASONS + 1
    assert log.counts["other"] == 1000 - DropLog.MAX_REASONS
