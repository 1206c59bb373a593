"""Every `livelm` command in README and docs exists, takes these options, and, where no network is needed, works."""

import bz2
import gzip
import io
import json
import lzma
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from tests.conftest import TINY, Command, Said
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from typer.main import get_command
from warcio.warcwriter import WARCWriter

from livelm.cli import app
from livelm.compare.arms import make_arms
from livelm.config import load_recipe, parse_budget, validate
from livelm.sources import SCHEMES, open_publisher, open_sources
from livelm.sources.web.crawl_settings import CrawlSettings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```(?:sh|shell|bash|console|)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
VERBS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
TEXT = "".join(f"Line {k} of a text that is read to see whether a command works.\n" for k in range(60))
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
LIVE = ("crawl", "kafka", "nats", "redis", "sse", "ws")
"""Sources that need a network."""
LIMIT = ("--for", "2s")


@dataclass(frozen=True)
class Line:
    """One command as it is written."""

    page: str
    words: tuple[str, ...]
    """Without the program itself."""

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"

    def parse(self) -> dict[str, Any]:
        """Its arguments by name. Raises what typer raises for what the verb does not take."""
        assert self.words, f"{self}: names no verb"
        assert self.words[0] in VERBS, f"{self}: there is no verb {self.words[0]!r}"
        return VERBS[self.words[0]].make_context(self.words[0], list(self.words[1:])).params


def commands(markdown: str, page: str = "") -> Iterator[Line]:
    """The commands in the blocks of shell; with prompts in a block, only what follows one is a command."""
    for block in BLOCK.findall(markdown):
        lines = block.replace("\\\n", " ").splitlines()
        typed = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        for line in typed or lines:
            if not re.search(r"\blivelm\b", line):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            yield from _calls(list(lexer), page)


def _calls(words: list[str], page: str) -> Iterator[Line]:
    """Each part of a line between `|`, `;` and `&&` that calls livelm, up to where its output is sent."""
    call: list[str] | None = None
    for word in [*words, ";"]:
        if set(word) <= set("();<>|&"):
            if call is not None:
                yield Line(page, tuple(call))
            call = None
        elif call is not None:
            call.append(word)
        elif word.rpartition("/")[2] == "livelm":
            call = []


LINES = [line for page in PAGES for line in commands(page.read_text("utf-8"), page.name)]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_in_the_docs_exists_and_its_settings_are_right(line: Line) -> None:
    given = line.parse()
    if budget := given.get("budget"):
        parse_budget(budget)
    if line.words[0] == "run":
        has_recipe = given["inputs"][0].endswith(".toml")
        recipe = load_recipe(ROOT / given["inputs"][0] if has_recipe else None, given["size"], given["changes"])
        sources = given["inputs"][has_recipe:]
        if not is_local(sources):
            open_sources(sources, recipe.source).close()
    elif given.get("models"):
        make_arms(given["models"].split(","), given["size"], given["changes"], given["paths"])
    elif line.words[0] == "crawl":
        contact = [f"source.crawl.contact={json.dumps(given['contact'])}"] if given["contact"] else []
        settings = load_recipe(None, "tiny", [*given["changes"], *contact]).source
        validate(CrawlSettings, settings.crawl, "source.crawl")
        assert "://" in given["to"] or given["to"].endswith((".jsonl.zst", ".warc.gz"))
        if "://" in given["to"]:
            open_publisher(given["to"], settings).close()


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in LINES if line.words[:1] != ("crawl",)], ids=str)
def test_a_command_in_the_docs_works(
    line: Line, learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, livelm_here: Callable[..., Said]
) -> None:
    given, verb = line.parse(), line.words[0]
    if given.get("models"):
        pytest.skip("minutes: tests/unit/test_compare.py makes a small comparison")
    sources = [s for s in given.get("sources", given.get("inputs", [])) if not s.endswith(".toml")]
    if not is_local(sources):
        pytest.skip("needs a network")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "tokenizer.json").write_text(tokenizer())
    for run in [given.get("path"), *given.get("paths", [])]:
        if run is not None and not (tmp_path / run).exists():
            shutil.copytree(learned, inside(tmp_path, str(run)))
    for source in sources:
        prepare(tmp_path, source)
    words = [inside_uri(tmp_path, word) for word in line.words]
    if verb in ("run", "fork", "eval", "resume", "watch"):
        words += LIMIT
    if verb == "run" and not given["inputs"][0].endswith(".toml"):
        words += TINY
    if "-" in sources:
        Command()(*words, input=TEXT, cwd=tmp_path)
    elif "run.device=cuda" in words and not torch.cuda.is_available():
        assert "no CUDA device" in livelm_here(*words, code=2).err
    else:
        livelm_here(*words)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, livelm_here: Callable[..., Said]) -> Path:
    """A small run, which held something out of learning."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "text").write_text(TEXT)
    livelm_here("run", folder / "text", "--out", folder / "run", *LIMIT, *TINY, "--set", "holdout.share=0.5")
    return folder / "run"


def is_local(sources: Sequence[str]) -> bool:
    """Whether they can be read without a network."""
    return all(scheme(source) not in LIVE and "://" not in source for source in sources)


def scheme(source: str) -> str:
    """The name of the source; `files` for a path."""
    begin, colon, _ = source.partition(":")
    return SCHEMES[begin] if colon else "files"


def inside(folder: Path, path: str) -> Path:
    """Where this path is in the folder of the test: absolute ones too, and those of the home folder."""
    return folder / path.removeprefix("~").lstrip("/")


def inside_uri(folder: Path, word: str) -> str:
    """A word of the command, with an absolute path moved into the folder of the test."""
    begin, colon, rest = word.rpartition(":")
    return f"{begin}{colon}{inside(folder, rest)}" if rest.startswith(("/", "~")) else word


def prepare(folder: Path, source: str) -> None:
    """Put something small where the source reads."""
    kind = scheme(source)
    path = source.partition(":")[2] if kind != "files" or source.startswith("files:") else source
    if kind in ("demo", "mix") or path == "-":
        return
    names = {"files": "text.txt", "sessions": "session.jsonl", "warc": "pages.warc"}
    place = inside(folder, (path or ".claude/projects/").replace("*", "a"))
    if path.endswith("/") or not path or (not place.suffix and kind in ("sessions", "warc")):
        place = place / names[kind]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content(kind, place.name))


def content(kind: str, name: str) -> bytes:
    """What belongs into a file of this name."""
    suffix = Path(name).suffix
    if suffix in PACKERS:
        return PACKERS[suffix](content(kind, name.removesuffix(suffix)))
    if kind == "warc":
        buffer = io.BytesIO()
        writer = WARCWriter(buffer, gzip=False)
        text = io.BytesIO(TEXT.encode())
        writer.write_record(writer.create_warc_record("http://example.org/", "conversion", text))
        return buffer.getvalue()
    if kind == "sessions":
        said = [{"role": "user", "content": "Say something."}, {"role": "assistant", "content": TEXT}]
        return json.dumps({"messages": said}).encode() + b"\n"
    return json.dumps({"text": TEXT}).encode() + b"\n" if suffix == ".jsonl" else TEXT.encode()


def tokenizer() -> str:
    """A byte-level BPE without merges, in place of a real one of several megabytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return made.to_str()


SAMPLE = r"""
Prose that names `livelm nothing` is no command.

```sh
make demo                                      # no command of ours
journalctl -f | .venv/bin/livelm run - --for 60s > out.txt && livelm \
    show RUN --json   # two of them
python -m livelm doctor
```

```python
livelm = "run"
```

```console
$ livelm eval RUN "a b.txt"
livelm said this
```
"""


def test_commands_are_found_as_a_shell_would_see_them() -> None:
    assert list(commands(SAMPLE)) == [
        Line("", ("run", "-", "--for", "60s")),
        Line("", ("show", "RUN", "--json")),
        Line("", ("doctor",)),
        Line("", ("eval", "RUN", "a b.txt")),
    ]


@pytest.mark.parametrize("words", ["lern a.txt", "run a.txt --sped 3", "show", "generate RUN --bytes none"])
def test_a_command_that_does_not_exist_any_more_is_noticed(words: str) -> None:
    [line] = commands(f"```sh\nlivelm {words}\n```\n")
    with pytest.raises(Exception, match=r"no verb|No such option|Missing|integer"):
        line.parse()


def test_the_readme_shows_how_to_learn_look_and_go_on() -> None:
    assert {"run", "show", "resume", "fork", "eval", "generate"} <= {
        line.words[0] for line in LINES if line.page == "README.md"
    }
