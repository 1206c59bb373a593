"""Updates that are captured once and replayed: on CUDA a small update costs its launches, not its arithmetic.

An update of 32 tokens starts some hundred kernels of a few microseconds each, which takes Python and the driver many
times as long as the card. Where the same work comes again, in the same shapes and at the same addresses, it is captured
as two CUDA graphs: one scores and finds the gradient, which changes no weight; the other is the step. `score` replays
the first, `update` the second, so that the contract stays what it is: graded first, learned then.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from livelm.errors import ConfigError
from livelm.kernels import kernels, kernels_of
from livelm.learn.learner import Learner, Optimizer, check_batch
from livelm.optim.grouped import Grouped
from livelm.types import Batch, Scored, State, Update

Work = Callable[[], None]
"""Something to do that waits for nothing and always does the same with what is at the same addresses."""
Capture = Callable[[Work, int], Work]
"""From some work, and how often to do it first, to what repeats it."""

TOLERANCE = 0.05
"""How far kernels may be from torch, relative to the length of what both compute. Chosen, not measured: ten times what
rounding to bfloat16 may do, and far below what a wrong kernel does."""
N_WARM_UP = 2
"""Times that scoring is done before it is captured: libraries make their handles and workspaces at first use."""


class CapturedLearner(Learner):
    """A `Learner` of a model that can be captured (`capturable`), with a `Grouped` optimizer.

    Captured are whole updates that leave the carried state in the shapes in which they found it (windows have filled
    up); all else is done as `Learner` does it. That depends on nothing but the update and the state, so a run that is
    resumed takes the same path as one that was not interrupted.
    """

    def __init__(self, n_tokens: int, *arguments: Any, capture: Capture | None = None) -> None:
        """`n_tokens` of each lane are a whole update; then the arguments of `Learner`.

        `capture` stands in for CUDA graphs in tests.
        """
        self.capture = capture or cuda_graph
        self._n_tokens = n_tokens
        self._forget()
        super().__init__(*arguments)

    def replace(self, model: nn.Module, optimizer: Optimizer, lanes: State) -> None:
        """Go on with another model that predicts the same, between an update and the next score."""
        super().replace(model, optimizer, lanes)
        self._forget()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        super().load_state_dict(state)
        self._forget()  # the optimizer's state has moved

    def _forget(self) -> None:
        self._captured: _Captured | None = None
        self._used: tuple[_Captured, Scored] | None = None

    def told_shape(self, batch: Batch) -> tuple[int, ...]:
        """Of what the device tells the host of a batch."""
        return tuple(batch.tokens.shape)

    def tell(
        self, inputs: Tensor, starts: Tensor, targets: Tensor, lanes: State
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T *V"], State]:
        """Nats to learn from, what to tell the host, and the state after the batch: what is captured."""
        nats, after = self.model.nats(inputs, starts, targets, lanes)  # type: ignore[operator]
        return nats, nats, after

    def _grade(self, batch: Batch, learns: bool) -> Scored:
        """By a captured pass, if there is one for this form and something is to be learned."""
        captured = self._replayed(batch, learns)
        if captured is None:
            return super()._grade(batch, learns)
        numbers = captured.told().astype(np.float64)  # a fifth of what torch takes for so few
        graded, total = torch.from_numpy(numbers), float(numbers.sum())
        if not math.isfinite(total):  # as in `Learner`: a broken prediction is graded as none
            graded = torch.where(torch.isfinite(graded), graded, math.log(self._n_vocabulary))
            self._broken(captured, batch)
        if batch.n_graded < batch.tokens.numel() or not captured.finite:
            graded = graded * batch.graded
            total = float(graded.sum())
        scored = Scored(seal=self._seal, batch=batch, nats=graded, sum_nats=total, loss=None)
        self._used = captured, scored
        return scored

    def _replayed(self, batch: Batch, learns: bool) -> "_Captured | None":
        """A captured pass that begins on this batch; None where there is none for it. The lanes have moved on."""
        captured = self._captured_for(batch) if learns and batch.n_graded else None
        if captured is not None:
            check_batch(batch, len(self._last), self._n_vocabulary)
            captured.score(batch, (self._last, self._last_starts), self.lanes)
            self._move(captured.lanes, batch)  # while the device works
        return captured

    def _broken(self, captured: "_Captured", batch: Batch) -> None:
        """What was predicted is not a number: learn nothing from it, and let its state not reach the next batch."""
        captured.finite = False
        self.lanes = self.model.init_state(len(batch.tokens))  # type: ignore[operator]

    def _learn(self, scored: Scored) -> Update:
        """The step that belongs to the captured pass, where the guard allows it."""
        captured, used = self._used or (None, None)
        self._used = None
        if captured is None or used is not scored:
            return super()._learn(scored)
        rate = self._set_rates()
        norm, skipped = math.nan, "the loss is not finite"
        if captured.finite:
            norm = captured.norm
            skipped = self._guard.judge(norm)
        if skipped is None:
            captured.step()
            if self._average is not None:
                self._average.take()
        self.n_updates += 1
        return Update(scored.batch.index, norm, rate, skipped)

    def _captured_for(self, batch: Batch) -> "_Captured | None":
        """What can be replayed for this batch; the first time that something could be, it is captured.

        Raises ConfigError where that fails: what a broken capture leaves behind in torch lets nothing go on.
        """
        if batch.tokens.shape[1] != self._n_tokens:
            return None
        if self._captured is None:
            assert isinstance(self.optimizer, Grouped)  # noqa: S101  # chosen by `parts`
            # the first step makes the optimizer's state; captured it would make it anew each time
            if self.optimizer.has_state() and self._stays(batch):
                self._captured = self._capture(batch)
            return self._captured
        form = self._captured.lanes
        if self.lanes is form:  # the usual case: nothing came between
            return self._captured
        fits = all(tensor.shape == form[name].shape for name, tensor in self.lanes.items())
        return self._captured if fits else None

    def _capture(self, batch: Batch) -> "_Captured":
        try:
            return _Captured(self, batch)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(
                f"this update cannot be captured as a CUDA graph: {reason}. Take run.capture=false."
            ) from error

    def _stays(self, batch: Batch) -> bool:
        """Whether the state comes out of this batch in the shapes it went in with."""
        inputs, starts = self._inputs(batch)
        read = (tensor.to(self.device) for tensor in (inputs, starts, batch.tokens))
        with torch.no_grad():
            _, after = self.model.nats(*read, self.lanes)  # type: ignore[operator]
        return all(after[name].shape == tensor.shape for name, tensor in self.lanes.items())


class _Captured:
    """A captured update: where its batch and its state lie, and what scores it and steps."""

    def __init__(self, learner: CapturedLearner, batch: Batch) -> None:
        self._tell = learner.tell
        self._optimizer: Any = learner.optimizer
        self._clip, self._parameters = learner.settings.clip, [p for p in learner.model.parameters() if p.requires_grad]
        n_lanes, n_tokens = batch.tokens.shape
        device, pinned = learner.device, learner.device.type == "cuda"
        self.lanes: State = {name: tensor.clone() for name, tensor in learner.lanes.items()}
        # what one transfer brings, and what one takes back: what is told and the norm
        self._given = torch.zeros(n_lanes * n_tokens * _GIVEN_BYTES, dtype=torch.uint8, pin_memory=pinned)
        written = _given(self._given, n_lanes, n_tokens)
        written[1].copy_(batch.tokens)
        written[3].fill_(1 / batch.tokens.numel())
        self._there = self._given.to(device)
        self._read = _given(self._there, n_lanes, n_tokens)
        shape = learner.told_shape(batch)
        self._found = torch.zeros(math.prod(shape) + 1, pin_memory=pinned)
        # the same memory for the host: a small copy by numpy costs a third of one by torch
        self._written = [part.numpy() for part in written]
        self._numbers = self._found.numpy()
        self._told = self._numbers[:-1].reshape(shape)
        self.finite = True
        self._parts: list[tuple[Any, Any]] = []
        self._begin = learner.lanes
        with kernels(pinned and same(self._passed, "scoring")):
            self._score = learner.capture(self._pass, N_WARM_UP)
        self._fast_step = pinned and same(self._stepped, "the step")
        with kernels(self._fast_step):
            self._stepped()  # what is captured must not be the first to load a kernel
            self._step = learner.capture(self._optimizer.step_now, 0)
        self._restart()
        self._begin = {}
        self._synchronize = torch.cuda.current_stream().synchronize if pinned else lambda: None

    def _restart(self) -> None:
        """Go back to where the first batch begins."""
        for name, tensor in self._begin.items():
            self.lanes[name].copy_(tensor)

    def _passed(self) -> list[list[Tensor]]:
        """What a pass finds: what it tells; gradients."""
        self._restart()
        self._pass()
        dense = [p.grad.clone() for p in self._parameters if p.grad is not None and not p.grad.is_sparse]
        return [[self._found[:-1].to(self._there.device)], dense]

    def _stepped(self) -> list[list[Tensor]]:
        """What a step after a replayed pass would add to all that it changes."""
        self._restart()
        self._score()
        return list(self._optimizer.practise())

    def score(self, batch: Batch, last: tuple[Tensor, Tensor], lanes: State) -> None:
        """Begin to score a batch from the state `lanes`, and to find the gradient.

        `last`: (B, 1) tokens before the batch, and whether they were starts.
        """
        if lanes is not self.lanes:  # something else came between
            for name, tensor in lanes.items():
                self.lanes[name].copy_(tensor)
        inputs, targets, starts, share = self._written
        tokens, begins = batch.tokens.numpy(), batch.starts.numpy()
        inputs[:, :1], inputs[:, 1:] = last[0].numpy(), tokens[:, :-1]
        starts[:, :1], starts[:, 1:] = last[1].numpy(), begins[:, :-1]
        targets[...], share[...] = tokens, batch.graded.numpy() / batch.n_graded
        self.finite = True
        self._score()

    def told(self) -> NDArray[np.float32]:
        """Wait for what is told; in memory that the next batch's will be written to."""
        self._synchronize()
        return self._told

    @property
    def norm(self) -> float:
        """Length of the gradient that was found."""
        return float(self._numbers[-1])

    def step(self) -> None:
        """Learn by what was found."""
        for parts, found in self._parts:  # a replay writes their tensors, not the lists that hold them
            parts.products, parts.rows, parts.reads = found
        self._step()
        with kernels(self._fast_step):
            self._optimizer.step_later()

    def _pass(self) -> None:
        """Score, find the gradient, clip it, move the state on."""
        self._there.copy_(self._given, non_blocking=True)
        inputs, targets, starts, share = self._read
        self._optimizer.zero_grad()
        nats, told, after = self._tell(inputs, starts, targets, self.lanes)
        nats.backward(share)  # of the mean over what is graded, which nobody asks for
        dense = [p for p in self._parameters if p.grad is not None and not p.grad.is_sparse]
        norm = self._clipped(dense)
        held: Any = [getattr(parameter, "gradient_parts", None) for parameter in self._parameters]
        factored = [parts for parts in held if parts is not None]
        self._parts = [(parts, (parts.products, parts.rows, parts.reads)) for parts in factored]
        _copy(self.lanes, after)
        self._found.copy_(torch.cat([told.detach().flatten(), norm[None]]), non_blocking=True)

    def _clipped(self, dense: list[nn.Parameter]) -> Tensor:
        """Length of the gradients, which are shortened to `clip`."""
        gradients: list[Any] = [parameter.grad for parameter in dense]
        many = kernels_of("livelm.kernels.many_tensors")
        if many is None or not many.fit(gradients):
            return nn.utils.clip_grad_norm_(dense, self._clip)
        return many.clip(gradients, self._clip)


_GIVEN_BYTES = 21
"""What is told of each token: int64 input and target, float32 share, bool start."""


def _given(buffer: Tensor, n_lanes: int, n_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a buffer of bytes: (B, T) inputs, targets, starts, and the share of each target in the loss."""
    n = n_lanes * n_tokens
    wide, narrow = buffer[: 16 * n].view(torch.int64).view(2, n_lanes, n_tokens), buffer[16 * n : 20 * n]
    starts, share = buffer[20 * n :].view(torch.bool), narrow.view(torch.float32)
    return wide[0], wide[1], starts.view(n_lanes, n_tokens), share.view(n_lanes, n_tokens)


def same(work: Callable[[], list[list[Tensor]]], name: str) -> bool:
    """Whether some work comes to the same with kernels as without, but for rounding; if not, a warning says so."""
    with kernels(False):
        plain = work()
    try:
        with kernels(True):
            fast = work()
        apart = [_apart(*pair) for pair in zip(fast, plain, strict=True)]
    except Exception as error:  # whatever a compiler may say: there is another way
        warnings.warn(f"kernels for {name} do not work here, it takes longer without them: {error}", stacklevel=2)
        return False
    if not all(part < TOLERANCE for part in apart):  # NaN is not
        found = ", ".join(f"{part:.2g}" for part in apart)
        warnings.warn(f"kernels for {name} err here ({found} of the length), it takes longer without", stacklevel=2)
        return False
    return True


def _apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Length of the difference of all tensors together, relative to theirs."""
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(found, wanted, strict=True))
    length = sum(float(b.double().square().sum()) for b in wanted)
    return (apart / length) ** 0.5 if length else apart


def cuda_graph(work: Work, n_warm_up: int) -> Work:
    """Capture work as a CUDA graph, after doing it `n_warm_up` times; what is returned replays it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(n_warm_up):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # batches are made in another thread meanwhile: what that does is no fault of the capture
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def _copy(to: State, source: State) -> None:
    """In as few launches as there are types, or in one."""
    pairs = [(source[name], tensor) for name, tensor in to.items()]
    if (many := kernels_of("livelm.kernels.many_tensors")) is not None:
        many.copy(*zip(*pairs, strict=True))
        return
    for dtype in {tensor.dtype for tensor in to.values()}:
        alike = [pair for pair in pairs if pair[1].dtype == dtype]
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [target for _, target in alike], [given for given, _ in alike]
        )
