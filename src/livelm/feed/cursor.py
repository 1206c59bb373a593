"""Where the feed stands after a batch: a place in the source, and the few tokens already read but not yet batched."""

import base64
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livelm.types import Cursor, DocumentStart


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of one document, waiting in a lane."""

    ids: NDArray[np.int32]
    n_bytes: NDArray[np.int32]
    """(n,) bytes each token stands for, 0 where it is not graded."""
    graded: NDArray[np.bool_]
    ordinal: int
    opens: DocumentStart | None
    """The document that the first token, its mark, opens; None in the middle of one."""

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, n: int) -> tuple["Stretch", "Stretch"]:
        """The first `n` tokens and the rest."""
        head = Stretch(self.ids[:n], self.n_bytes[:n], self.graded[:n], self.ordinal, self.opens)
        return head, Stretch(self.ids[n:], self.n_bytes[n:], self.graded[n:], self.ordinal, None)


@dataclass(frozen=True, slots=True)
class OpenDocument:
    """A document of which more pieces will come."""

    id: str
    ordinal: int
    lane: int
    held: bytes
    """Bytes the encoder keeps back until later ones settle them."""
    position: int
    """Bytes of the document that became tokens."""
    context: tuple[tuple[int, int], ...]
    """Ranges of the document that are not graded and may still touch coming tokens."""


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """Continues after a batch, exactly: the next batch will be the one that would have come."""

    source: Cursor | None
    """Read on from here; None: from the start."""
    skip: int
    """Bytes of the next document of the source that the feed has taken already."""
    n_documents: int
    n_batches: int
    lanes: tuple[tuple[Stretch, ...], ...]
    fresh: tuple[bool, ...]
    """Per lane, whether nothing was ever put in it."""
    open: OpenDocument | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; arrays as base64, at most one piece of a document per lane."""
        return {
            "source": None if self.source is None else {"source": self.source.source, "at": dict(self.source.at)},
            "skip": self.skip,
            "n_documents": self.n_documents,
            "n_batches": self.n_batches,
            "lanes": [[_stretch_to_json(s) for s in lane] for lane in self.lanes],
            "fresh": list(self.fresh),
            "open": None
            if self.open is None
            else {
                "id": self.open.id,
                "ordinal": self.open.ordinal,
                "lane": self.open.lane,
                "held": _text(self.open.held),
                "position": self.open.position,
                "context": [list(r) for r in self.open.context],
            },
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "FeedCursor":
        """Read what `to_json` wrote."""
        source, opened = values["source"], values["open"]
        return FeedCursor(
            source=None if source is None else Cursor(source["source"], source["at"]),
            skip=values["skip"],
            n_documents=values["n_documents"],
            n_batches=values["n_batches"],
            lanes=tuple(tuple(_stretch_from_json(s) for s in lane) for lane in values["lanes"]),
            fresh=tuple(values["fresh"]),
            open=None
            if opened is None
            else OpenDocument(
                id=opened["id"],
                ordinal=opened["ordinal"],
                lane=opened["lane"],
                held=base64.b64decode(opened["held"]),
                position=opened["position"],
                context=tuple((a, b) for a, b in opened["context"]),
            ),
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _stretch_to_json(s: Stretch) -> dict[str, Any]:
    return {
        "ids": _text(s.ids.astype("<i4").tobytes()),
        "n_bytes": _text(s.n_bytes.astype("<i4").tobytes()),
        "graded": _text(np.packbits(s.graded).tobytes()),
        "ordinal": s.ordinal,
        "opens": None if s.opens is None else asdict(s.opens),
    }


def _stretch_from_json(values: dict[str, Any]) -> Stretch:
    ids = np.frombuffer(base64.b64decode(values["ids"]), "<i4").astype(np.int32)
    graded = np.unpackbits(np.frombuffer(base64.b64decode(values["graded"]), np.uint8), count=len(ids))
    return Stretch(
        ids=ids,
        n_bytes=np.frombuffer(base64.b64decode(values["n_bytes"]), "<i4").astype(np.int32),
        graded=graded.astype(np.bool_),
        ordinal=values["ordinal"],
        opens=None if values["opens"] is None else DocumentStart(**values["opens"]),
    )
