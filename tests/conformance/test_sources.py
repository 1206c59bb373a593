"""What every source of SOURCES promises: exact resumption, stable ids, cursors that survive, and an end when closed."""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from importlib.metadata import packages_distributions
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.conformance.source_fixtures import CASES, parameters
from tests.conformance.surroundings import Brokers, Fixture, Make, Surroundings

from livelm.config import Settings, SourceSettings
from livelm.errors import LivelmError, SourceError
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.sources import SOURCES, Files
from livelm.types import Acknowledging, Cursor, Document, Keeping, Observed, Source

Pairs = list[tuple[Document, Cursor]]
T = TypeVar("T")
LIMIT_S = 20
"""How long something may take that ends within a second, on a machine that does other things too."""


@pytest.fixture(params=parameters())
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def name(case: str) -> str:
    """In SOURCES."""
    return CASES[case][0]


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    found = Brokers(tmp_path_factory.mktemp("brokers"))
    with found.stack:
        yield found


@pytest.fixture
def fixture(case: str, brokers: Brokers, tmp_path: Path) -> Iterator[Fixture]:
    with ExitStack() as stack:
        yield CASES[case][1](Surroundings(tmp_path, stack, brokers))


@pytest.fixture
def make(fixture: Fixture, tmp_path: Path) -> Make:
    """Opens the source over the same text every time, and with the same folder if it keeps something."""

    def opened() -> Source:
        source = fixture.make()
        if isinstance(source, Keeping):
            source.keep(tmp_path / "kept" / "here")
        return source

    return opened


def replayable(source: Source, folder: Path) -> Source:
    return source if source.replayable else Spooled(source, Spool(folder))


def some(source: Source, cursor: Cursor | None, n: int) -> Pairs:
    with closing(source):
        return list(islice(source.read(cursor), n))


def elsewhere(call: Callable[[], T]) -> T:
    """What a call returns in another thread, where it may not block."""
    found: list[T | Exception] = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert found, "it blocks"
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def through_json(cursor: Cursor) -> Cursor:
    """What a checkpoint makes of it."""
    again = Cursor(cursor.source, json.loads(json.dumps(cursor.at, allow_nan=False)))
    assert again == cursor
    return again


def as_read(pairs: Pairs, *, ordered: bool) -> list[Document]:
    """The documents, in the order of reading if it is always the same."""
    found = [document for document, _ in pairs]
    return found if ordered else sorted(found, key=lambda document: (document.id, document.offset))


def test_every_source_of_the_registry_is_tested_here() -> None:
    assert {name for name, _, _ in CASES.values()} == set(SOURCES)


def test_resuming_after_any_document_from_a_stored_cursor_yields_the_same_rest(
    make: Make, fixture: Fixture, tmp_path: Path
) -> None:
    whole = some(replayable(make(), tmp_path / "spool"), None, fixture.n)
    assert len(whole) == fixture.n
    for k in range(fixture.n):
        rest = some(replayable(make(), tmp_path / "spool"), through_json(whole[k][1]), fixture.n - k - 1)
        assert rest == whole[k + 1 :]


def test_a_fresh_copy_resumed_from_the_sources_own_cursor_yields_the_same_rest(
    name: str, make: Make, fixture: Fixture
) -> None:
    if name == "stdin":
        pytest.skip("standard input gives each byte once: only its spool can be resumed")
    whole = some(make(), None, fixture.n)
    for k in range(fixture.n):
        rest = some(make(), through_json(whole[k][1]), fixture.n - k - 1)
        assert as_read(rest, ordered=fixture.ordered) == as_read(whole[k + 1 :], ordered=fixture.ordered)


@pytest.mark.parametrize("at", [{}, {"path": "x"}, {"offset": "1"}])
def test_a_foreign_cursor_is_refused(name: str, make: Make, at: dict) -> None:
    for cursor in (Cursor("elsewhere", at), Cursor(name, at)):
        with pytest.raises(SourceError, match="does not belong"):
            some(make(), cursor, 1)


def test_the_spool_refuses_the_cursor_of_another_spool(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"alpha")
    text = Files([str(tmp_path / "a.txt")])
    [(_, cursor)] = some(Spooled(text, Spool(tmp_path / "one")), None, 1)
    with pytest.raises(SourceError, match="does not belong"):
        some(Spooled(text, Spool(tmp_path / "two")), cursor, 1)


def test_every_read_has_the_same_ids_and_pieces_that_continue_one_another(make: Make, fixture: Fixture) -> None:
    first, second = (some(make(), None, fixture.n) for _ in range(2))
    assert [(d.id, d.offset) for d in as_read(first, ordered=fixture.ordered)] == [
        (d.id, d.offset) for d in as_read(second, ordered=fixture.ordered)
    ]
    previous: Document | None = None
    for document, _ in first:
        assert document.source in SOURCES
        assert all(0 <= start <= stop <= len(document.text) for start, stop in document.context)
        if previous is not None and not previous.last:
            assert (document.id, document.offset) == (previous.id, previous.offset + len(previous.text))
        else:
            assert document.offset == 0
        previous = document


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "spooled"])
def test_a_blocked_read_ends_when_closed(make: Make, fixture: Fixture, tmp_path: Path, *, wrapped: bool) -> None:
    source = fixture.silent() if fixture.silent else make()
    if source.bounded and not fixture.silent:
        pytest.skip("it never waits for text: it ends")
    if wrapped:
        source = Spooled(source, Spool(tmp_path / "spool"))
    n_wanted = 0 if fixture.silent else fixture.n
    n_read = 0

    def read() -> None:
        nonlocal n_read
        for _ in source.read(None):
            n_read += 1

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + LIMIT_S
    while n_read < n_wanted and reader.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert n_read >= n_wanted
    reader.join(0.3)
    assert reader.is_alive(), "it should wait for text"
    elsewhere(source.close)
    elsewhere(source.close)
    reader.join(LIMIT_S)
    assert not reader.is_alive()


def test_a_closed_read_delivers_nothing_more(make: Make) -> None:
    source = make()
    documents = source.read(None)
    next(documents)
    source.close()
    assert list(documents) == []


def test_what_is_closed_before_it_is_read_ends_at_once(make: Make) -> None:
    source = make()
    source.close()
    assert elsewhere(lambda: list(source.read(None))) == []


def test_what_cannot_be_reached_is_an_error_and_no_hang(fixture: Fixture) -> None:
    if fixture.broken is None:
        pytest.skip("it is out of reach in no other way than the others of its kind")
    with pytest.raises(LivelmError):
        some(fixture.broken(), None, fixture.n + 1)


def test_it_says_in_one_line_what_is_read(make: Make) -> None:
    source = make()
    with closing(source):
        line = source.describe()
        assert "\n" not in line
        assert ("never ends" in line) is not source.bounded
        assert ("cannot be read again" in line) is not source.replayable


def test_what_it_observes_is_plain_and_keeps_its_keys(make: Make, fixture: Fixture) -> None:
    source = make()
    if not isinstance(source, Observed):
        pytest.skip("it has nothing to say about itself")
    before = elsewhere(source.observe)
    with closing(source):
        during = [elsewhere(source.observe) for _ in islice(source.read(None), fixture.n)]
        during.append(elsewhere(source.observe))
    during.append(elsewhere(source.observe))
    for observed in (before, *during):
        assert json.loads(json.dumps(observed, allow_nan=False)) == observed
        for reasons in drops(observed):
            assert all(isinstance(n, int) and n > 0 for n in reasons.values())
    assert keys(before) <= keys(during[0])
    assert all(keys(observed) == keys(during[0]) for observed in during)


def keys(observed: Any, path: str = "") -> set[str]:
    """All there are, also of the parts of a mix; reasons of drops, and what is redacted, come as they happen."""
    if not isinstance(observed, dict) or path.endswith(("/drops", "/redacted")):
        return {path}
    return {path}.union(*(keys(value, f"{path}/{key}") for key, value in observed.items()))


def drops(observed: dict[str, Any]) -> Iterator[dict[str, int]]:
    for key, value in observed.items():
        if key == "drops":
            yield value
        elif isinstance(value, dict):
            yield from drops(value)


def test_a_commit_is_safe_at_any_time_and_forgets_nothing_that_comes_after(make: Make, fixture: Fixture) -> None:
    if not isinstance(make(), Acknowledging):
        pytest.skip("nobody waits for it to be told")
    whole = some(make(), None, fixture.n)  # now all of it is there to be forgotten
    source, again = make(), Pairs()
    assert isinstance(source, Acknowledging)
    source.commit(whole[0][1])
    with closing(source):
        # to the very end if there is one: then what was said is sure to have been heard
        for document, cursor in islice(source.read(None), fixture.n + source.bounded):
            again.append((document, cursor))
            if len(again) <= fixture.n - 2:
                elsewhere(lambda cursor=cursor: source.commit(cursor))
    _, cursor = again[fixture.n - 3]
    elsewhere(lambda: source.commit(cursor))
    rest = some(make(), cursor, 2)
    for found in (again, again[: fixture.n - 2] + rest):
        assert as_read(found, ordered=fixture.ordered) == as_read(whole, ordered=fixture.ordered)


def test_without_a_folder_to_keep_things_in_it_leaves_nothing_behind(
    fixture: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fixture.make()
    if not isinstance(source, Keeping):
        pytest.skip("it keeps nothing")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert len(some(source, None, fixture.n)) == fixture.n
    assert list((tmp_path / "temporary").iterdir()) == []


def test_its_settings_are_a_group_of_the_recipe_and_all_explained(name: str) -> None:
    if name not in SourceSettings.model_fields:
        assert name in ("files", "stdin", "tail"), "these have their settings in [source] itself"
        return
    groups = [SOURCES[name].load().Config]
    for group in groups:
        assert issubclass(group, Settings)
        assert group.__doc__
        for field in group.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                groups.append(field.annotation)
            else:
                assert field.description


WITHOUT_EXTRAS = """
import json, sys
for module in sys.argv[1:]:
    sys.modules[module] = None  # an import finds no such module
from livelm.errors import Unavailable
from livelm.sources import SOURCES
said = {}
for name, kind in SOURCES.items():
    try:
        kind.load()
        said[name] = None
    except Unavailable as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said_without_extras() -> dict[str, str | None]:
    """What loading each source says when nothing optional is installed; None: it loads."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        re.split(r"[^A-Za-z0-9_.-]", line)[0].lower()
        for extra in {kind.extra for kind in SOURCES.values() if kind.extra}
        for line in extras[extra]
    }
    modules = [
        module
        for module, distributions in packages_distributions().items()
        if wanted & {distribution.lower() for distribution in distributions} and module.isidentifier()
    ]
    assert len(modules) >= len(wanted)
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, *modules], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_missing_extra_is_an_error_that_says_how_to_install_it(
    name: str, said_without_extras: dict[str, str | None]
) -> None:
    said, extra = said_without_extras[name], SOURCES[name].extra
    if extra is None:
        assert said is None
    else:
        assert said is not None
        assert said.endswith(f"pip install 'livelm[{extra}]'")
