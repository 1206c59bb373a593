"""The nouns every part speaks: documents and cursors, tokens, batches, what was scored, and the contracts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a source, or a process that crawls, knows nothing of tensors and need not load them
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

LN_2 = 0.6931471805599453
"""Nats per bit."""

Json = None | bool | int | float | str | list[Any] | dict[str, Any]
"""What JSON can hold (the inner levels are not checked by types)."""

State: TypeAlias = "dict[str, Tensor]"
"""What a model carries from one batch to the next, by name; first axis of every tensor is the lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One piece of a stream: a page, a file, a session, or a slice of one that is too long to hold.

    A long or endless document arrives in pieces with the same `id`: the first has `offset` 0, each next one
    continues where the last ended, and `last` is False until the final piece.
    """

    text: bytes
    id: str
    """Stable: the same document has the same id however often it is read."""
    source: str
    """The name of the source in `SOURCES`."""
    offset: int = 0
    """Bytes of this document that earlier pieces delivered."""
    last: bool = True
    """Whether the document ends with this piece."""
    at: str | None = None
    """When the document was made or seen, ISO 8601."""
    url: str | None = None
    context: tuple[tuple[int, int], ...] = ()
    """Byte ranges [start, stop) of `text` that are read but neither scored nor learned."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a stream: "continue after this document". Plain JSON, so it survives any store."""

    source: str
    """The name of the source that made it; a source refuses a foreign cursor."""
    at: Mapping[str, Json] = field(default_factory=dict)


class Source(Protocol):
    """Where text comes from."""

    bounded: bool
    """Whether the stream ends by itself."""
    replayable: bool
    """Whether `read(cursor)` can deliver the past again; if not, the spool is obligatory."""

    def read(self, cursor: Cursor | None) -> Iterator[tuple[Document, Cursor]]:
        """Yield every document after `cursor` (None: from the start) with the cursor that continues after it.

        Raises SourceError for a missing, unreadable or foreign thing, naming it.
        """
        ...

    def close(self) -> None:
        """Make a blocked `read` end within a second; safe to call from any thread, more than once."""
        ...

    def describe(self) -> str:
        """One line for people: what is read, whether it ends, whether it can be read again."""
        ...


@runtime_checkable
class Acknowledging(Protocol):
    """A source that others wait for: it is told what is safe, so that a broker may forget it."""

    def commit(self, cursor: Cursor) -> None:
        """Everything up to and including `cursor` is durable here. From any thread; quick; safe after `close`."""
        ...


@runtime_checkable
class Observed(Protocol):
    """A source that has something to say about itself while it runs."""

    def observe(self) -> dict[str, Json]:
        """Counters and gauges so far, units in their names; `drops` maps each reason to how many. Never blocks."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A source that takes a while to begin, such as a crawl, which starts processes."""

    def prepare(self) -> None:
        """Begin with what needs no folder; called at most once, before `keep`. Returns at once; `close` undoes it."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """A source with durable state of its own, such as the frontier of a crawl."""

    def keep(self, folder: Path) -> None:
        """Use this folder for it; called once, before `read`. The folder need not exist yet."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some tokens and the bytes each stands for."""

    ids: NDArray[np.int32]
    """(n,) token numbers below the vocabulary size."""
    n_bytes: NDArray[np.int32]
    """(n,) bytes of the document each token covers; the sum is exact for any input."""


class Encoder(Protocol):
    """Turns one document into tokens while it arrives in pieces."""

    def feed(self, piece: bytes) -> Tokens:
        """Take the next piece; return the tokens that no later byte can change."""
        ...

    def finish(self) -> Tokens:
        """Return what was held back at the end of the document; the encoder is then fresh again."""
        ...

    @property
    def held(self) -> bytes:
        """Bytes taken but not yet returned as tokens; feeding them to a fresh encoder restores this one."""
        ...


class Tokenizer(Protocol):
    """Bytes to tokens and back: deterministic, causal, lossless."""

    adaptive: bool
    """Whether the vocabulary changes while it reads."""
    n_vocabulary: int
    mark: int
    """The token that opens every document; it stands for no byte."""

    def encoder(self) -> Encoder:
        """A fresh encoder for one document."""
        ...

    def encode(self, text: bytes) -> Tokens:
        """Encode a whole document at once, without the mark."""
        ...

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes these tokens stand for; the mark stands for none."""
        ...


@runtime_checkable
class Divided(Protocol):
    """A tokenizer that divides bytes: some of its tokens stand for a part of one (see `tokenize.decoder`)."""

    def whole(self, ids: Sequence[int]) -> int:
        """How many of the first `ids` make whole bytes; those after them wait for the rest of theirs."""
        ...


@dataclass(frozen=True, slots=True)
class DocumentStart:
    """The first time a batch meets a document."""

    ordinal: int
    """How many documents began before it in this run."""
    id: str
    source: str
    at: str | None
    url: str | None


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """Which positions of a batch belong to which document: tokens[lane, start:stop]."""

    ordinal: int
    lane: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The next T tokens of B lanes. A lane is one continuing stream with its own carried state."""

    tokens: Int[Tensor, "B T"]
    """The tokens to predict, in stream order; the model's input is the same row shifted by one."""
    starts: Bool[Tensor, "B T"]
    """True at the first token (the mark) of each document; nothing before it may influence what follows."""
    graded: Bool[Tensor, "B T"]
    """True where the prediction counts and may be learned from."""
    n_bytes: Int[Tensor, "B T"]
    """Bytes each graded token stands for; 0 where not graded."""
    index: int
    """How many batches came before."""
    spans: tuple[DocumentSpan, ...]
    begun: tuple[DocumentStart, ...]
    cursor: Any
    """A `feed.FeedCursor`: continues after this batch. Opaque to everyone but the feed."""
    n_graded: int = field(init=False)
    """Graded tokens in all."""
    n_graded_bytes: int = field(init=False)
    """Bytes they stand for."""

    def __post_init__(self) -> None:
        # summed where batches are made, many at a time: a cold call between two updates costs ten times a warm one
        object.__setattr__(self, "n_graded", int(np.count_nonzero(self.graded.numpy())))
        object.__setattr__(self, "n_graded_bytes", int(self.n_bytes.numpy().sum()))


class Outline(NamedTuple):
    """The parts of a model that a policy of learning (`learn.policy`) can single out."""

    layers: tuple[torch.nn.Module, ...]
    """What the stream goes through, each module once, in the order in which it first meets them."""
    head: tuple[torch.nn.Module | torch.nn.Parameter, ...]
    """What makes logits of the stream after the last layer; the token table too, where it is tied."""
    initial: tuple[torch.nn.Parameter, ...]
    """What every document begins with, where that is trained (`model.initial_state` is `learned`)."""


@runtime_checkable
class Model(Protocol):
    """A next-token predictor that carries state. Implementations are `torch.nn.Module`s."""

    Config: ClassVar[type]
    context_reach: int | None
    """How many tokens back a prediction can see; None: without limit."""

    def init_state(self, n_lanes: int) -> State:
        """The state before anything was read."""
        ...

    def forward(
        self, tokens: Int[Tensor, "B T"], starts: Bool[Tensor, "B T"], state: State
    ) -> tuple[Float[Tensor, "B T V"], State]:
        """Logits of the token after each position, and the state after the last one.

        Where `starts[b, t]` is true, position t and everything after it is computed as if lane b had just begun.
        The returned state is detached: no gradient crosses a batch.
        """
        ...

    def nats(
        self,
        tokens: Int[Tensor, "B T"],
        starts: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B T"],
        state: State,
    ) -> tuple[Float[Tensor, "B T"], State]:
        """-ln p(target) of the token after each position: what `forward` and a full softmax give, maybe faster."""
        ...

    def flops_per_token(self) -> int:
        """Multiply-adds times two of one token's forward pass at full context (attention included)."""
        ...

    def parameter_kinds(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Every trainable parameter once, by how optimizers treat it.

        The kinds are `matrix`, `table`, `vector`, `rows` (a table with row-sparse gradients) and `deferred` (a table
        that leaves its gradient in factors, see `models.ops.token_table`).
        """
        ...

    def outline(self) -> Outline:
        """Its layers, its head and what is trained of its initial state."""
        ...


@runtime_checkable
class Particular(Protocol):
    """A model that is made for some tokenizers only."""

    def require(self, tokenizer: Tokenizer) -> None:
        """Raise ConfigError for a tokenizer whose tokens it would misread."""
        ...


@runtime_checkable
class Grained(Protocol):
    """A model whose tokens have roles by their place in the document (patches of bits, workers)."""

    @property
    def grain(self) -> int:
        """After so many tokens of a document the roles repeat: reading may begin anew at multiples of it."""
        ...


@runtime_checkable
class Capturable(Protocol):
    """A model whose passes can be captured as a CUDA graph: no shape depends on what is read, and nothing waits."""

    capturable: ClassVar[bool]
    """Whether they can."""


@runtime_checkable
class Compiled(Protocol):
    """A model some of whose passes are compiled functions (`livelm.compiled`)."""

    def is_compiled(self, tokens: Tensor, starts: Tensor, state: State) -> bool:
        """Whether a pass over these would be, were compiled functions used."""
        ...


@runtime_checkable
class Growing(Protocol):
    """A model that can become larger without changing what it predicts."""

    def enlarged(self, what: str) -> Any:
        """A model of twice the `depth`, `width` or `context`, and how to carry over state (`bit_growth.Enlarged`)."""
        ...


class Scored:
    """A batch that was graded with the weights as they were before it: the only thing that may change anything.

    Counts are the finer case of the same rule: each byte is graded with the counts as they were before that byte, and
    learned then; the batch that comes out says so (`taught`).

    Only `learn.Learner.score` makes one (it alone holds the seal), and `learn.Learner.update` takes each one once.
    """

    __slots__ = ("alone", "batch", "bits", "loss", "n_bytes", "n_tokens", "nats", "seal", "spent", "taught")

    def __init__(
        self,
        *,
        seal: object,
        batch: Batch,
        nats: Float[Tensor, "B T"],
        sum_nats: float,
        loss: Tensor | None,
        alone: Mapping[str, float] | None = None,
        taught: bool = False,
    ) -> None:
        """Keep what was graded; `loss` (a scalar) still carries the graph of the very pass that was graded.

        Where no weights learn, or the pass was captured (`learn.captured`), `loss` is None. `alone`: fields of the
        journal with what each part of a mixture would have cost alone, in bits. `taught`: whether counts learned each
        byte as soon as it was graded.
        """
        self.seal = seal
        self.spent = False
        self.batch = batch
        self.nats = nats
        """(B, T) cost of each token in nats, float64, detached; 0 where not graded."""
        self.loss = loss
        self.alone: Mapping[str, float] = alone or {}
        self.taught = taught
        self.bits = sum_nats / LN_2
        self.n_bytes = batch.n_graded_bytes
        self.n_tokens = batch.n_graded


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did."""

    index: int
    """The index of the batch it learned from."""
    gradient_norm: float
    """Length of the whole gradient before clipping."""
    rate: float
    """The learning rate of the first parameter group."""
    skipped: str | None
    """Why nothing was changed; None when the update was taken."""


Record = dict[str, Any]
"""One line of the journal: a JSON object with a `kind`."""
