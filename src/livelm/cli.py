"""The command line: one function per verb, thin."""

import errno
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from livelm.compare.arms import make_arms, unknown_settings
from livelm.compare.contest import Contest
from livelm.compare.rules import Equal, Rules, parse_rates
from livelm.compare.seeds import contest_json, contest_table
from livelm.compiled import tell_compiling
from livelm.config import load_recipe, parse_budget, validate
from livelm.doctor import examine
from livelm.errors import ConfigError, LivelmError, StorageError
from livelm.evaluate.baselines import measure
from livelm.evaluate.forgetting import by_parts, summed
from livelm.evaluate.generate import generate as sample
from livelm.evaluate.plot import plot_compare, plot_run, plot_seeds
from livelm.evaluate.report import compare_json, compare_table, forgetting_table, shared_bytes, show_table
from livelm.evaluate.stream import grade_stream
from livelm.folder import RunFolder, unused_folder
from livelm.registry import load_optional
from livelm.run import fork as fork_session
from livelm.run import load, load_holdout, run_session, start
from livelm.run import resume as resume_session
from livelm.session import Session, Stop
from livelm.sources import absolute, open_publisher, open_sources
from livelm.telemetry.fold import Fold, fold_journal
from livelm.telemetry.graded import MAX_BYTES
from livelm.telemetry.progress import CrawlJson, CrawlLines, CrawlScreen
from livelm.telemetry.terminal import JsonView, LiveView, PlainView, say_compiling
from livelm.watch.run import open_watch, run_watch
from livelm.watch.settings import WatchSettings
from livelm.watch.show import JsonView as WatchJson
from livelm.watch.show import TextView as WatchText
from livelm.watch.webhook import Webhook

app = typer.Typer(
    name="livelm",
    help="Small language models that learn from live streams, graded before they learn.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: model.d_model=256.")]
For = Annotated[str, typer.Option("--for", metavar="AMOUNT", help="How much to read: 60s, 10m, 500KB, 5MB.")]
Out = Annotated[Path | None, typer.Option(help="Where the run is kept (default: runs/<time>-<name>).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seeds every random number.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the learner (default: all cores).")]
Size = Annotated[str, typer.Option(help="The one dial: tiny, small or base.")]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the system says when a disk takes no more."""
N_PARTS = 8
"""Parts of the stream in which forgetting is shown."""
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@app.command()
def run(
    inputs: Annotated[list[str], typer.Argument(metavar="[RECIPE] SOURCE...", help="A recipe (.toml), then sources.")],
    changes: Set = [],  # noqa: B006 - typer reads it
    size: Size = "tiny",
    budget: For = "",
    out: Out = None,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Learn from a stream: predict every byte, then learn from it."""
    has_recipe = inputs[0].endswith(".toml")
    settings = _settings(changes, inputs[has_recipe:], budget, seed, threads)
    recipe = load_recipe(Path(inputs[0]) if has_recipe else None, size, settings)
    if not recipe.source.uris:
        raise ConfigError("there is no SOURCE. Give a file, a directory, - for standard input, tail:FILE or demo:")
    _drive(lambda stop: start(recipe, out, stop), as_json)


@app.command()
def resume(path: RunPath, budget: For = "", as_json: AsJson = False) -> None:
    """Go on with a run exactly where its newest checkpoint was taken."""
    _drive(lambda stop: resume_session(path, budget, stop), as_json)


@app.command()
def fork(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or a file of RWKV-7 weights.")],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...")],
    changes: Set = [],  # noqa: B006 - typer reads it
    budget: For = "",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Begin a new run on another stream with what a run has learned."""
    _drive(lambda stop: fork_session(path, _absolute(sources), out, budget, stop, changes), as_json)


@app.command()
def show(
    path: RunPath,
    png: Annotated[Path | None, typer.Option(help="Where to draw bits per byte (default: RUN/curve.png).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run has learned, how fast, and what surprised it."""
    fold = _fold(path)
    if as_json:
        _print_json(fold.summary())
        return
    target = png or path / "curve.png"
    plot_run(fold, target)
    console = Console()
    console.print(show_table(fold))
    console.print(f"curve: {target}", highlight=False)


@app.command()
def compare(
    paths: Annotated[
        list[str], typer.Argument(metavar="RUN RUN... | SOURCE...", help="Runs; with --models, a stream.")
    ],
    models: Annotated[str, typer.Option(help="Train these on SOURCE: transformer,worker or recipe files.")] = "",
    budget: For = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every model.")] = 3,
    equal: Annotated[Equal, typer.Option(help="What all models have equal.")] = Equal.TIME,
    rates: Annotated[
        str, typer.Option(help="Learning rates tried for every model; or: recipe.")
    ] = "1e-3,2e-3,4e-3,8e-3",
    pilot: Annotated[str, typer.Option(help="How long each rate is tried (default: a tenth of --for).")] = "",
    changes: Set = [],  # noqa: B006 - typer reads it
    size: Size = "tiny",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each learner.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where the runs are kept (default: runs/<time>-compare).")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw everything into one picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs on equal prefixes of what they read; or, with --models, train architectures side by side."""
    if models:
        rules = Rules(equal=equal, budget=budget, seeds=seeds, rates=parse_rates(rates), pilot=pilot)
        names = [name.strip() for name in models.split(",") if name.strip()]
        arms = make_arms(names, size, [*changes, f"run.threads={threads}"], _absolute(paths))
        contest = Contest(arms, rules, out or unused_folder("compare"), Stop(), notes=unknown_settings(arms, changes))
        _compare_models(contest, png, as_json)
        return
    if len(paths) < 2:
        raise ConfigError("compare needs at least two runs, or --models and a SOURCE.")
    shared = shared_bytes({path: _fold(Path(path)) for path in paths})
    folds = {path: _fold(Path(path), shared) for path in paths}
    if as_json:
        _print_json(compare_json(folds))
        return
    Console().print(compare_table(folds))
    if png is not None:
        plot_compare(folds, png)


@app.command(name="eval")
def evaluate(
    path: RunPath,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE...]", help="Without: what was held out.")
    ] = None,
    budget: For = "",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Grade a stream without learning from it: each byte once; or, without one, what the run held out of learning."""
    if not sources:
        _evaluate_held_out(path, threads, as_json)
        return
    limit, stop = parse_budget(budget), Stop()
    source = open_sources(sources)
    parts, learner = load(path, threads)
    stop.install()  # an endless stream is graded until Ctrl-C
    result = grade_stream(
        learner,
        parts.tokenizer,
        source,
        update_tokens=parts.recipe.feed.update_tokens,
        limit=limit,
        stopped=lambda: stop.reason is not None,
    )
    if as_json:
        _print_json(result)
        return
    baselines = result["baselines"]
    typer.echo(f"{result['bits_per_byte']:.4f} bits per byte over {result['n_bytes']:,} bytes")
    typer.echo(
        f"of the first {result['baselines_n_bytes']:,}: PPMd {baselines['ppmd']:.3f}, xz {baselines['xz']:.3f}, "
        f"unigram {baselines['unigram']:.3f}"
    )


@app.command()
def generate(
    path: RunPath,
    prompt: Annotated[str, typer.Option(help="What the document begins with.")] = "",
    n_bytes: Annotated[int, typer.Option("--bytes", min=1, help="At most so many bytes.")] = 500,
    temperature: Annotated[float, typer.Option(help="1: as learned; 0: always the most probable.")] = 1.0,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text as the model would."""
    parts, _ = load(path)
    text = bytearray()
    out = sys.stdout.buffer
    begin = prompt.encode(errors="surrogateescape")  # the very bytes that were typed
    pieces = sample(parts.model, parts.tokenizer, begin, temperature=temperature, seed=seed or 0, memory=parts.memory)
    for token in pieces:
        piece = token[: n_bytes - len(text)]
        text += piece
        if not as_json:
            out.write(piece)
            out.flush()
        if len(text) >= n_bytes:
            break
    if as_json:
        _print_json({"prompt": prompt, "text": text.decode("utf-8", "replace"), "n_bytes": len(text)})
    else:
        out.write(b"\n")


@app.command()
def crawl(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Where to begin.")],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help="NAME.jsonl.zst, NAME.warc.gz, or nats://...")],
    contact: Annotated[str, typer.Option(help="Where site owners reach you: a URL or a mail address.")] = "",
    changes: Set = [],  # noqa: B006 - typer reads it
    out: Annotated[Path | None, typer.Option(help="What the crawl keeps for itself (default: beside TARGET).")] = None,
    budget: For = "",
    as_json: AsJson = False,
) -> None:
    """Crawl sites politely into a file or a broker; the same command goes on where it was stopped."""
    contacts = [f"source.crawl.contact={json.dumps(contact)}"] if contact else []
    settings = load_recipe(None, "tiny", [*changes, *contacts]).source
    harvest = load_optional("livelm.sources.web.harvest:harvest", "web", "livelm crawl")
    kind = load_optional("livelm.sources.web.crawl_settings:CrawlSettings", "web", "livelm crawl")
    limit, stop = parse_budget(budget), Stop()
    stop.install()
    view = CrawlJson() if as_json else CrawlScreen() if _is_screen() else CrawlLines()
    progress = harvest(
        urls,
        to,
        validate(kind, settings.crawl, "source.crawl"),
        out or _crawl_folder(to),
        budget=limit,
        open_publisher=lambda uri: open_publisher(uri, settings),
    )
    with view.screen(), closing(progress):
        for said in progress:
            view.take(said)
            if stop.reason is not None:
                break


@app.command()
def watch(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="A file, tail:FILE, - or any other source.")
    ],
    rate: Annotated[float, typer.Option(help="The share of documents that may be alarms; 1: say every one.")] = 0.001,
    per_day: Annotated[float | None, typer.Option(help="So many alarms per day instead; for live streams.")] = None,
    by: Annotated[str, typer.Option(help="What is scored: line, document, or auto (by the source).")] = "auto",
    group_by: Annotated[
        str, typer.Option(metavar="REGEX", help=r"Score lines with the same key as one: 'blk_-?\d+'.")
    ] = "",
    groups: Annotated[int, typer.Option(help="Groups open at once; the longest untouched is closed.")] = 10_000,
    idle: Annotated[int, typer.Option(help="A group is closed so many lines after its last.")] = 100_000,
    burn_in: Annotated[int, typer.Option(help="Documents that only teach what is usual.")] = 200,
    webhook: Annotated[str, typer.Option(metavar="URL", help="Also send surprises and drift there, as JSON.")] = "",
    changes: Set = [],  # noqa: B006 - typer reads it
    budget: For = "",
    out: Annotated[Path | None, typer.Option(help="Keep all there; the same command then goes on, exactly.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is surprising in a stream as it comes, at the rate of alarms you ask for."""
    asked = {"rate": rate, "per_day": per_day, "by": by, "group_by": group_by, "groups": groups}
    asked |= {"idle": idle, "burn_in": burn_in}
    settings = validate(WatchSettings, asked, "watch")
    limit, stop = parse_budget(budget), Stop()
    sender = Webhook(webhook) if webhook else None
    watched = open_watch(_absolute(sources), load_recipe(None, "tiny", changes), settings, out, limit, stop)
    stop.install()
    view = WatchJson() if as_json else WatchText()
    try:
        run_watch(watched, [view] if sender is None else [view, sender])
    finally:
        if sender is not None:
            sender.close()
            if sender.dropped:
                typer.echo(
                    f"livelm: {sender.dropped} records were not delivered to {webhook}: {sender.trouble}", err=True
                )


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what is off, and the one line that turns it on."""
    findings = examine()
    if as_json:
        _print_json([finding.to_json() for finding in findings])
        return
    for finding in findings:
        typer.echo(f"{'on ' if finding.on else 'off'}  {finding.name:<12} {finding.detail}")


def main() -> None:
    """Run the command line; expected failures become one line and an exit code."""
    tell_compiling(say_compiling)
    try:
        app()
    except LivelmError as error:
        typer.echo(f"livelm: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            typer.echo(f"livelm: the system refused: {error}", err=True)
            sys.exit(StorageError.exit_code if error.errno in FULL else LivelmError.exit_code)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        sys.exit(141)


def _settings(
    changes: Sequence[str], sources: Sequence[str], budget: str, seed: int | None, threads: int | None
) -> list[str]:
    """The options of the command line as `--set` changes; options win over `--set`."""
    settings = list(changes)
    if sources:
        settings.append(f"source.uris={json.dumps(_absolute(sources))}")
    if budget:
        parse_budget(budget)
        settings.append(f"run.budget={json.dumps(budget)}")
    settings += [f"run.seed={seed}"] if seed is not None else []
    settings += [f"run.threads={threads}"] if threads is not None else []
    return settings


def _absolute(sources: Sequence[str]) -> list[str]:
    """Paths made absolute, so that `resume` finds them from anywhere."""
    return [_absolute_one(source) for source in sources]


def _absolute_one(source: str) -> str:
    try:
        source.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the name {source!r} is not valid UTF-8, and a recipe must be. Name its directory, or pipe it in with `-`."
        ) from None
    return absolute(source)


def _crawl_folder(target: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", target) if "://" in target else target
    return Path(f"{name}.crawl").expanduser()


def _drive(open_session: Any, as_json: bool) -> None:
    stop = Stop()
    stop.install()
    session: Session = open_session(stop)
    fold = fold_journal(session.folder.journal_path) if session.n_batches else Fold()
    view = JsonView() if as_json else LiveView(fold=fold) if _is_screen() else PlainView(fold=fold)
    try:
        with view:
            run_session(session, [view])
    finally:
        where = session.folder.path
        if not as_json and where.exists() and session.n_batches:
            typer.echo(f"kept in {where}; look: livelm show {where}; go on: livelm resume {where}", err=True)


def _compare_models(contest: Contest, png: Path | None, as_json: bool) -> None:
    """Run it, then write table.json and curves.png beside the runs; what is done is kept, whatever ends it."""
    contest.stop.install()
    for sentence in contest.run():
        typer.echo(sentence, err=True)  # the table, or the one object, has standard output for itself
    if not contest.folds():
        typer.echo(f"livelm: {contest.stop.reason}: nothing to compare yet.", err=True)
        return
    found = contest_json(contest)
    (contest.folder / "table.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    plot_seeds(contest.folds(), found["baselines"] or {}, png or contest.folder / "curves.png")
    if as_json:
        _print_json(found)
        return
    Console().print(contest_table(found))
    typer.echo(f"kept in {contest.folder}: every run, table.json, {(png or Path('curves.png'))}", err=True)


def _evaluate_held_out(path: Path, threads: int | None, as_json: bool) -> None:
    """What the network makes now of what was held out, beside what it made of it when it was read."""
    graded = load_holdout(path, threads).grade_again()
    parts, whole = by_parts(graded, N_PARTS), summed(graded)
    if as_json:
        slices = [
            dict(zip(graded, row, strict=True)) for row in zip(*(c.tolist() for c in graded.values()), strict=True)
        ]
        _print_json({**whole, "parts": parts, "slices": slices})
        return
    Console().print(forgetting_table([*parts, whole]))


def _is_screen() -> bool:
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def _fold(path: Path, *marks: int) -> Fold:
    """The journal of a run, exact at the `marks` (bytes); baselines that it lacks are measured now."""
    folder = RunFolder.open(path)
    folder.first_record()
    fold = fold_journal(folder.journal_path, marks)
    kept = min(folder.graded.stat().st_size, fold.n_bytes, MAX_BYTES) if folder.graded.exists() else 0
    if kept and kept > (fold.baselines_n_bytes or 0):
        with folder.graded.open("rb") as file:
            fold = fold_journal(folder.journal_path, [*marks, kept])
            fold.take(measure(file.read(kept)).record(fold.at_s))
    return fold


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, allow_nan=False))  # ASCII: right on every terminal, and for names that are not UTF-8
