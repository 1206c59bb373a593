"""The loop: score, write it down, learn, write it down, save. Everything else only serves it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from livelm.config import Budget, Part, Recipe, change_recipe, load_recipe, parse_budget
from livelm.errors import ConfigError, RunError, SourceError
from livelm.evaluate.baselines import BaselineWorker
from livelm.feed import FeedCursor, Prefetch, batches
from livelm.feed.spool import Spool
from livelm.feed.spooled import Spooled
from livelm.folder import RunFolder
from livelm.learn import Holdout, MemoryLearner, inherit
from livelm.models.rwkv7_checkpoints import infer_config, read_tensors, to_native
from livelm.parts import AnyLearner, Parts, build_parts, run_record
from livelm.session import Session, Stop
from livelm.sources import open_sources
from livelm.telemetry.clock import Clock
from livelm.telemetry.graded import GradedBytes
from livelm.telemetry.journal import Journal
from livelm.telemetry.records import document_records, scored_record, update_record
from livelm.telemetry.terminal import Listener
from livelm.types import Keeping, Preparing, Record, Source


def learn(session: Session) -> Iterator[Record]:
    """THE LOOP. Yields each record before anything that comes after it is done."""
    s, clock, learner = session, session.clock, session.learner
    while (batch := s.next_batch()) is not None:
        with clock.span("score"):
            scored = learner.score(batch, s.refusal)  # graded with yesterday's weights, and counts of a byte ago
        with clock.span("journal"):
            yield from document_records(batch)
            yield scored_record(scored)  # written before anything is learned
            if s.monitor is not None:
                yield from s.monitor.take(scored)
        refusal = s.refusal  # what was just graded may have closed the gate, or opened it
        with clock.span("update"):  # only now may any weight change
            update = learner.update(scored) if refusal is None else learner.refuse(scored, refusal)
            rehearsed = None if s.rehearsal is None else s.rehearsal.take(scored, update)
        with clock.span("journal"):
            s.graded.append(batch)  # while a card takes its step
            yield update_record(update)
            if rehearsed is not None:
                yield rehearsed
            if s.holdout is not None:
                yield from s.holdout.take(scored)
            if refusal is None and s.growth is not None and (grown := s.growth.take(scored)) is not None:
                yield grown
            s.cursor, s.n_bytes = batch.cursor, s.n_bytes + scored.n_bytes
            if clock.report_due():
                yield from s.observe()
        if s.save_due():
            yield s.save()


def run_session(session: Session, views: Sequence[Listener]) -> None:
    """Drive the loop to its end: every record goes into the journal, then to the views.

    Whatever ends it (the stream, the budget, a signal, a broken source, a view whose reader is gone), what was
    scored is saved first. Raises SourceError, StorageError; then the last checkpoint is intact. A run that failed
    before it learned anything leaves nothing behind.
    """
    watching = list(views)

    def tell(records: Iterator[Record] | Sequence[Record]) -> None:
        for record in records:
            written = session.journal.write(record)
            for view in tuple(watching):
                try:
                    view.take(written)
                except BrokenPipeError:
                    watching.remove(view)
                    session.stop.request("nobody reads the output any more")

    learned_nothing = False
    try:
        tell(session.opening)
        if session.fresh:
            tell([session.save()])  # so that a run which dies in its first minute can be resumed too
        failure: SourceError | None = None
        try:
            tell(learn(session))
        except SourceError as error:  # the stream broke; what it gave before is kept
            failure = error
        if failure is None and session.n_batches == 0 and session.stop.reason is None:
            failure = SourceError(f"{session.source.describe()}: the stream ended without a single byte to learn from.")
        tell([session.clock.report()])  # before the checkpoint, so that a resumed run still knows its time
        if session.n_batches != session.saved_batch:
            tell([session.save()])
        if failure is not None:
            session.stop.request(f"failed: {failure}")
        tell(session.close_baselines())
        tell([session.stopped()])
        if failure is not None:
            learned_nothing = session.n_batches == 0
            raise failure
    finally:
        session.close()
        if learned_nothing or session.saved_batch is None:
            session.folder.discard()


def start(recipe: Recipe, out: Path | None, stop: Stop) -> Session:
    """Open a new run. Raises ConfigError, SourceError, RunError or StorageError before anything is written."""
    source = open_sources(recipe.source.uris, recipe.source)
    try:
        _prepare(source)  # while the model is built
        parts = build_parts(recipe)
        folder = RunFolder.create(out, parts.recipe)
        try:
            return _open(folder, parts, source, None, stop)
        except BaseException:
            folder.discard()
            raise
    except BaseException:
        source.close()
        raise


def resume(path: Path, more: str, stop: Stop) -> Session:
    """Go on with a run exactly after its newest checkpoint; `more` adds to its budget.

    Raises RunError, CheckpointError or JournalError when the directory does not allow it.
    """
    folder = RunFolder.open(path)
    folder.lock()
    try:
        recipe = folder.recipe()
        tree = folder.newest_checkpoint()
        source = open_sources(recipe.source.uris, recipe.source)
        try:
            _prepare(source)  # while the model is built
            return _open(folder, build_parts(recipe), source, tree, stop, more)
        except BaseException:
            source.close()
            raise
    except BaseException:
        folder.unlock()
        raise


def fork(
    path: Path, uris: Sequence[str], out: Path | None, budget: str, stop: Stop, changes: Sequence[str] = ()
) -> Session:
    """Begin a new run on another stream with what a run has learned, or with published RWKV-7 weights (a file).

    `changes` are `--set` changes of the run's recipe, which may also leave out its network or its memory
    (`model.name=none`, `memory.name=none`), or add one, which begins with nothing learned. While model, policy and
    optimizer stay, the optimizer goes on as if nothing had changed; otherwise it, the guard and the schedule begin
    anew. Raises what `start` does, RunError and
    CheckpointError for a run or weights that cannot be taken over, naming what does not fit. Published weights are a
    network alone unless `changes` name a memory.
    """
    recipe, learned, origin = _published(path) if path.is_file() else _learned(path)
    changed = change_recipe(
        recipe.model_copy(
            update={
                "source": recipe.source.model_copy(update={"uris": tuple(uris)}),
                "run": recipe.run.model_copy(update={"budget": budget}),
            }
        ),
        changes,
    )
    session = start(changed, out, stop)
    try:
        _take_over(session, recipe, changed, learned)
    except BaseException:
        session.close()
        session.folder.discard()
        raise
    _inherit_slices(session, recipe, learned)
    session.learner.reset_lanes(changed.feed.lanes)  # another stream: nothing of the old one is before it
    if session.growth is not None:
        session.growth.begin_stream()
    session.opening[0] |= origin
    return session


def _take_over(session: Session, recipe: Recipe, changed: Recipe, learned: dict[str, Any]) -> None:
    """Give a fresh session of `changed` what was learned under `recipe`: network, memory, or what of both it has.

    What the run did not have begins here.
    """
    learner, growth, own = session.learner, session.growth, session.learner.state_dict()
    now = session.parts.recipe
    kept = [name for name in ("model", "memory") if name in own and name in learned]
    if "memory" in kept and (now.memory, now.feed.lanes) != (recipe.memory, recipe.feed.lanes):
        raise ConfigError(
            "what a count memory learned fits only the settings it learned with: leave [memory] and feed.lanes as they "
            "are, or go on without it: --set memory.name=none."
        )
    weights = own | {name: learned[name] for name in kept}
    if (changed.model, changed.learn.policy) != (recipe.model, recipe.learn.policy):
        if "model" in kept:
            weights["model"] = inherit(learned["model"], session.parts.model)  # type: ignore[arg-type]
    else:
        if growth is not None and "growth" in learned:
            growth.load_state_dict(learned["growth"])
        if changed.optimizer == recipe.optimizer and "optimizer" in learned:
            learner.load_state_dict(own | learned)
            return
    learner.load_weights(weights)


def _inherit_slices(session: Session, recipe: Recipe, learned: dict[str, Any]) -> None:
    """Let a fork rehearse what its run read, and grade what that held out, where the settings of slices are the same.

    Otherwise it begins with none.
    """
    if session.parts.recipe.tokenizer != recipe.tokenizer:
        return
    for name, part in (("rehearsal", session.rehearsal), ("holdout", session.holdout)):
        if part is not None and learned.get(name) is not None:
            part.inherit(learned[name])


def _learned(path: Path) -> tuple[Recipe, dict[str, Any], Record]:
    """Recipe of a run, what its learner had learned, and what record 0 of a fork says about it."""
    folder = RunFolder.open(path)
    tree = folder.newest_checkpoint()
    learned = {**tree["learner"], **{name: tree.get(name) for name in ("growth", "rehearsal", "holdout")}}
    return folder.recipe(), learned, {"forked_from": tree["run"], "forked_at_batch": tree["n_batches"]}


def _published(path: Path) -> tuple[Recipe, dict[str, Any], Record]:
    """The same of published weights: a recipe of their sizes, the weights, the name of the file."""
    tensors = to_native(read_tensors(path), str(path))
    sizes, _ = infer_config(tensors, str(path))
    recipe = load_recipe(None, "tiny")
    model = Part(name="rwkv7", **sizes.model_dump(mode="json", exclude_none=True))
    learned = {"model": {name: tensor.float() for name, tensor in tensors.items()}}
    alone = {"name": path.stem, "model": model, "memory": Part(name="none")}
    return recipe.model_copy(update=alone), learned, {"forked_from": path.name}


def load(path: Path, threads: int | None = None) -> tuple[Parts, AnyLearner]:
    """The model of a run as it was at its newest checkpoint, for grading and generating; the run is left alone.

    Its weights are their running mean, where the run keeps one. `threads` replaces what the recipe says.
    """
    parts, learner, tree = _load(path, threads)
    if not isinstance(learner, MemoryLearner):
        learner.settle(tree["learner"])
    return parts, learner


def load_holdout(path: Path, threads: int | None = None) -> Holdout:
    """What a run held out of learning, and its network as it was at its newest checkpoint (the last weights, which also
    graded it first).

    Raises RunError where nothing was held out.
    """
    parts, learner, tree = _load(path, threads)
    holdout, held = parts.holdout(learner), tree.get("holdout")
    if holdout is not None and held is not None:
        holdout.load_state_dict(held)
    if holdout is None or not holdout.kept.n_held:
        why = f"holdout.share is {parts.recipe.holdout.share:g}"
        raise RunError(
            f"{str(path)!r} has held nothing out of learning yet ({why}), so there is nothing to grade again. Name a "
            "SOURCE to grade, or hold something out in the next run: --set holdout.share=0.02."
        )
    return holdout


def _load(path: Path, threads: int | None) -> tuple[Parts, AnyLearner, dict[str, Any]]:
    folder = RunFolder.open(path)
    tree = folder.newest_checkpoint()
    recipe = folder.recipe()
    here = (
        {"device": "cpu"} if not torch.cuda.is_available() else {}
    )  # what learned on a card grades and writes anywhere
    here |= {} if threads is None else {"threads": threads}
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update=here)})
    parts = build_parts(recipe)
    learner = parts.learner(lambda: 0.0)
    growth = parts.growth(learner)
    if growth is not None:
        growth.load_state_dict(tree["growth"])
    learner.load_weights(tree["learner"])
    return parts, learner, tree


def _prepare(source: Source) -> None:
    if isinstance(source, Preparing):
        source.prepare()


def _open(
    folder: RunFolder, parts: Parts, source: Source, tree: dict[str, Any] | None, stop: Stop, more: str = ""
) -> Session:
    """Put a session together: from the start (`tree` None), or from a checkpoint."""
    recipe = parts.recipe
    cursor = FeedCursor.from_json(tree["feed"]) if tree and tree["feed"] else None
    if isinstance(source, Keeping):
        source.keep(folder.source)
    spool = None
    if not source.replayable:
        s = recipe.spool
        source = spool = Spooled(source, Spool(folder.spool, segment_bytes=s.segment_bytes, max_bytes=s.max_bytes))
    budget, n_bytes, active_s = parse_budget(recipe.run.budget), tree["n_bytes"] if tree else 0, 0.0
    if tree:
        active_s = tree["active_s"]
    if more:
        extra = parse_budget(more)
        budget = Budget(
            seconds=None if extra.seconds is None else active_s + extra.seconds,
            n_bytes=None if extra.n_bytes is None else n_bytes + extra.n_bytes,
        )
    learner = parts.learner(lambda: session.elapsed())
    monitor = parts.monitor()
    growth, rehearsal, holdout = parts.growth(learner), parts.rehearsal(learner), parts.holdout(learner)
    if tree:
        if growth is not None:
            growth.load_state_dict(tree["growth"])
        learner.load_state_dict(tree["learner"])
        if rehearsal is not None:
            rehearsal.load_state_dict(tree["rehearsal"])
        if holdout is not None:
            holdout.load_state_dict(tree["holdout"])
    if tree and monitor is not None:
        monitor.load_state_dict(tree["signals"])
    clock = Clock(active_s)
    session = Session(
        folder=folder,
        parts=parts,
        learner=learner,
        growth=growth,
        rehearsal=rehearsal,
        holdout=holdout,
        source=source,
        spool=spool,
        feed=Prefetch(lambda: batches(source, parts.tokenizer, recipe.feed, cursor), recipe.feed.prefetch),
        journal=Journal(folder.journal_path, **(tree["journal"] if tree else {})),
        graded=GradedBytes(folder.graded, parts.tokenizer, recipe.feed.lanes, tree["graded"] if tree else None),
        monitor=monitor,
        clock=clock,
        budget=budget,
        run=tree["run"] if tree else uuid4().hex,
        n_bytes=n_bytes,
        cursor=cursor,
        stop=stop,
        baselines=BaselineWorker(folder.graded),
        saved_at_s=active_s,
        fresh=tree is None,
        saved_batch=tree["n_batches"] if tree else None,
    )
    session.opening = [
        {"kind": "resumed", "at_s": round(active_s, 3), "batch": session.n_batches}
        if tree
        else run_record(parts, source, session.run)
    ]
    session.opening += [{"kind": "warning", "at_s": round(active_s, 3), "message": said} for said in parts.warnings]
    return session
