"""Do dynamic tokens (merges promoted online from what was already graded) learn a stream faster than plain bytes?

Tokens: see `bench.dynamic_merges`. What is graded is the next token; bits of a segmentation that whoever decodes can
reproduce are an upper bound of -log2 p(bytes), so this is an honest cost.

Model: the transformer of the project. A merged token's rows, for reading and for predicting, come from a network over
the rows of its two parts, recursively, plus an own part that starts at zero.

`segment` says how many bytes a token stands for, which bounds the speed-up, beside an offline BPE of the same size.
`race` gives every arm the same processor time of one thread, in short turns of one process, and says what it read,
what that cost, and what bytes held out cost then. Each seed begins elsewhere in the text. All arms have the same grid
of rates and the same schedule.

python -m bench.dynamic_tokens segment input.txt
python -m bench.dynamic_tokens race input.txt --keep shakespeare
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.dynamic_merges import N_FIXED, Merges, offline, segmented
from bench.record import keep
from bench.worker import race
from livelm.memory import CountMemory
from livelm.memory.kernel import GRADE
from livelm.models.layers import linear, rms_norm, silent_linear
from livelm.models.ngrams import NgramEmbedding
from livelm.models.ops.head import nats_of
from livelm.models.transformer import Transformer
from livelm.optim import set_rates
from livelm.optim.adamw import AdamW
from livelm.optim.schedules import InverseSqrt
from livelm.types import LN_2

MARK = 256
SIZES = {"n_layers": 2, "context": 128, "norm": "layer", "ngram_rows": 65_536}
ORDERS = (2, 3, 4, 5, 6)
SCHEDULE = InverseSqrt(warmup=100, hold=700)
REFRESH_EVERY = 16
"""Updates after which all composed rows are computed anew."""
N_HELD = 16_384
"""Bytes at the end of each seed's text that nobody reads, and all are graded on afterwards without learning."""
PILOT = 99
"""The seed of the runs that choose the rate."""


class ComposedTable(nn.Module):
    """A row for each token: its own, and for a merged token what a network makes of the rows of its two parts.

    What the network makes is kept, and refreshed together with the network every few updates: the gradients of the
    rows are summed until then, so that it learns from every row as if it had made each row anew for each update.
    `follows`: the part (0 left, 1 right) that a token nothing is known of equals.
    """

    parts: Tensor
    made: Tensor
    waiting: Tensor

    def __init__(self, n_rows: int, d_model: int, std: float, follows: int) -> None:
        super().__init__()
        self.follows = follows
        self.weight = nn.Parameter(torch.zeros(n_rows, d_model))
        nn.init.normal_(self.weight[:N_FIXED], std=std)
        self.network = nn.Sequential(linear(2 * d_model, d_model), nn.ReLU(), silent_linear(d_model, d_model))
        self.register_buffer("parts", torch.zeros(n_rows, 2, dtype=torch.int64))
        self.register_buffer("made", torch.zeros(n_rows, d_model))
        self.register_buffer("waiting", torch.zeros(n_rows, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, D): rows of these tokens."""
        return F.embedding(tokens, self.weight) + self.made[tokens]

    def rows(self, n: int) -> Tensor:
        """(n, D): the first n rows."""
        return self.weight[:n] + self.made[:n]

    def make(self, tokens: Tensor) -> Tensor:
        """(n,) to (n, D): what the network makes of their parts' rows, of which the own ones get gradient too."""
        both = self.parts[tokens]
        pair = F.embedding(both, self.weight) + self.made[both]
        # the divisor lets a step of Adam move a made row no faster than an own one; without it rows of rows explode
        return pair[..., self.follows, :] + self.network(rms_norm(pair).flatten(-2)) / pair.shape[-1]

    def learn(self, n_tokens: int, n_updates: int) -> None:
        """Give the network the mean gradient of the rows it made, over the updates since it last learned."""
        tokens = torch.arange(N_FIXED, n_tokens)
        self.make(tokens).backward(self.waiting[tokens] / n_updates)
        self.waiting.zero_()

    @torch.no_grad()
    def refresh(self, tokens: list[int]) -> None:
        """Make the rows of these tokens, which are of one depth, anew."""
        self.made[tokens] = self.make(torch.tensor(tokens))


class BytesOfTokens(NgramEmbedding):
    """n-grams of the bytes before the end of each token, whatever the tokens were."""

    def __init__(self, merges: Merges, orders: tuple[int, ...], n_rows: int, d_model: int) -> None:
        super().__init__(orders, n_rows, d_model)
        self.merges = merges

    def forward(self, recent: Tensor, tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As NgramEmbedding; one lane, one document, whose mark counts as a byte of its own."""
        texts = [list(self.merges.texts[token]) or [MARK] for token in tokens[0].tolist()]
        read = torch.cat([recent, torch.tensor([[byte for text in texts for byte in text]])], dim=1)
        rows = self.rows(read, torch.zeros_like(read))[0]
        ends = torch.tensor([len(text) for text in texts]).cumsum(0) - 1
        both = F.embedding_bag(rows[ends], self.table, mode="sum", sparse=True)[None]
        first, last = both.chunk(2, dim=-1)
        return first, last, read[:, -self.n_back :]


class TokenTransformer(Transformer):
    """The transformer over tokens that come and go; input and output rows are composed."""

    def __init__(self, config: Any, merges: Merges, ngrams_of: str) -> None:
        n_rows = N_FIXED + merges.n_merges
        super().__init__(config, N_FIXED)
        self.merges = merges
        self.embed: Any = ComposedTable(n_rows, config.d_model, std=0.02, follows=1)
        self.head: Any = ComposedTable(n_rows, config.d_model, std=0.0, follows=0)
        if ngrams_of == "bytes":
            self.ngrams = BytesOfTokens(merges, config.ngrams, config.ngram_rows, config.d_model)

    def nats(self, tokens: Tensor, starts: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        """As in Transformer, over the tokens there are now."""
        x, state = self.hidden(tokens, starts, state)
        return nats_of(x @ self.head.rows(len(self.merges)).T, targets), state

    def parameter_kinds(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """As in Transformer."""
        kinds: dict[str, list[tuple[str, nn.Parameter]]] = {}
        special = {"ngrams.table": "rows", "embed.weight": "table", "head.weight": "table"}
        for name, parameter in self.named_parameters():
            kind = special.get(name, "matrix" if parameter.dim() == 2 else "vector")
            kinds.setdefault(kind, []).append((name, parameter))
        return kinds

    def learn(self, n_updates: int) -> None:
        """After backward: keep the rows' gradients, and every few updates pass them on to what makes rows."""
        for table in (self.embed, self.head):
            table.waiting += table.weight.grad
            if n_updates % REFRESH_EVERY == 0 and len(self.merges) > N_FIXED:
                table.learn(len(self.merges), REFRESH_EVERY)

    def refresh(self, tokens: list[int]) -> None:
        """Compose these tokens' cached rows anew, parts first."""
        for depth in sorted({self.merges.depths[token] for token in tokens}):
            level = [token for token in tokens if self.merges.depths[token] == depth]
            self.embed.refresh(level)
            self.head.refresh(level)

    @torch.no_grad()
    def replace(self, tokens: list[int], optimizer: AdamW) -> None:
        """Give these tokens, which are new, their parts, no row of their own, and no past in the optimizer."""
        for table in (self.embed, self.head):
            table.parts[tokens] = torch.tensor([self.merges.parts[token] for token in tokens])
            table.weight[tokens] = 0.0
            table.waiting[tokens] = 0.0
            for part in optimizer.parts:
                for average in (value for name, value in part.state.get(table.weight, {}).items() if name != "step"):
                    average[tokens] = 0.0
        self.refresh(tokens)


@dataclass(frozen=True)
class Arm:
    """One way to read."""

    label: str
    n_tokens: int = 64
    """Tokens per update."""
    n_merges: int = 0
    """0: plain bytes."""
    ngrams_of: str = ""
    """`tokens` (for plain bytes these are the bytes), `bytes`, or nothing."""
    counts: bool = False
    """The count memory of the project instead of a model."""

    def build(self, d_model: int) -> tuple[Any, Merges]:
        """The model and its tokens."""
        config = Transformer.Config.model_validate(
            {**SIZES, "d_model": d_model, "n_heads": d_model // 32, "ngrams": ORDERS if self.ngrams_of else ()}
        )
        merges = Merges(self.n_merges)
        model = TokenTransformer(config, merges, self.ngrams_of) if self.n_merges else Transformer(config, N_FIXED)
        return model, merges


ARMS = [
    Arm("bytes, 64"),
    Arm("bytes, 128", 128),
    Arm("bytes, n-grams, 64", ngrams_of="tokens"),
    Arm("bytes, n-grams, 128", 128, ngrams_of="tokens"),
    Arm("bytes, n-grams, 256", 256, ngrams_of="tokens"),
    Arm("count memory, no network", 512, counts=True),
    Arm("512 merges", n_merges=512),
    Arm("1024 merges", n_merges=1024),
    Arm("2048 merges", n_merges=2048),
    Arm("1024 merges, n-grams of tokens", n_merges=1024, ngrams_of="tokens"),
    Arm("512 merges, n-grams of bytes", n_merges=512, ngrams_of="bytes"),
    Arm("1024 merges, n-grams of bytes", n_merges=1024, ngrams_of="bytes"),
    Arm("1024 merges, n-grams of bytes, 32", 32, n_merges=1024, ngrams_of="bytes"),
    Arm("2048 merges, n-grams of bytes", n_merges=2048, ngrams_of="bytes"),
]
PLAIN = ("bytes, 64", "bytes, n-grams, 64")
"""What an arm without and with n-grams is compared with."""


@dataclass
class Reader:
    """A model that reads a text, on a clock of its own (processor time), segmentation and promotion included."""

    arm: Arm
    text: bytes
    rate: float
    d_model: int
    seed: int
    seconds: float = 0.0
    curve: list[tuple[float, int, float]] = field(default_factory=list)
    """After each update: seconds, bytes and bits so far."""

    def __post_init__(self) -> None:
        self.text, self.held = self.text[:-N_HELD], self.text[-N_HELD:]
        torch.manual_seed(self.seed)
        self.model, self.merges = self.arm.build(self.d_model)
        self.optimizer = AdamW(AdamW.Config(rate=self.rate), self.model.parameter_kinds())
        self.state = self.model.init_state(1)
        self.last, self.at, self.bits, self.n_read = MARK, 0, 0.0, 0

    def update(self) -> None:
        """Score, then learn from, the next tokens; only then may they make new tokens."""
        begin = time.process_time()
        read, self.at = self.merges.segment(self.text, self.at, self.arm.n_tokens)
        inputs, targets = torch.tensor([[self.last, *read[:-1]]]), torch.tensor([read])
        nats, self.state = self.model.nats(inputs, inputs == MARK, targets, self.state)
        set_rates(self.optimizer, SCHEDULE.factor(len(self.curve), 0.0))
        self.optimizer.zero_grad()
        nats.mean().backward()
        if self.arm.n_merges:
            self.model.learn(len(self.curve) + 1)
        dense = [p for p in self.model.parameters() if p.grad is not None and not p.grad.is_sparse]
        nn.utils.clip_grad_norm_(dense, 1.0)
        self.optimizer.step()
        self.bits += float(nats.detach().double().sum()) / LN_2
        self.last, self.n_read = read[-1], self.n_read + len(read)
        if self.arm.n_merges:
            self._promote(read)
        self._tick(begin)

    def _tick(self, begin: float) -> None:
        self.seconds += time.process_time() - begin
        self.curve.append((self.seconds, self.at, self.bits))
        if self.at == len(self.text):
            self.seconds = float("inf")  # nothing is left to read: no more turns

    def _promote(self, read: list[int]) -> None:
        new = list(dict.fromkeys(self.merges.observe(read)))
        if new:
            self.model.replace(new, self.optimizer)
        if (len(self.curve) + 1) % REFRESH_EVERY == 0 and len(self.merges) > N_FIXED:
            self.model.refresh(list(range(N_FIXED, len(self.merges))))

    @torch.no_grad()
    def grade_held(self) -> float:
        """Bits per byte of the bytes held out, with the weights and tokens as they are now; nothing is learned."""
        at, last, bits, state = 0, MARK, 0.0, self.model.init_state(1)
        while at < len(self.held):
            read, at = self.merges.segment(self.held, at, self.arm.n_tokens)
            inputs = torch.tensor([[last, *read[:-1]]])
            nats, state = self.model.nats(inputs, inputs == MARK, torch.tensor([read]), state)
            bits, last = bits + float(nats.double().sum()) / LN_2, read[-1]
        return bits / len(self.held)

    def after(self, *, seconds: float = float("inf"), n_bytes: float = float("inf")) -> tuple[float, int, float]:
        """Seconds, bytes and bits of the last update that ended within these."""
        return [row for row in self.curve if row[0] <= seconds and row[1] <= n_bytes][-1]


class CountReader(Reader):
    """The count memory alone, on the same clock: what a stream too fast for a network is read with already."""

    def __post_init__(self) -> None:
        self.text, self.held = self.text[:-N_HELD], self.text[-N_HELD:]
        self.memory, self.merges = CountMemory(), Merges(0)
        self.memory.prepare()
        self.at, self.bits, self.n_read = 0, 0.0, 0

    def update(self) -> None:
        """Score and learn the next bytes, one after another."""
        begin = time.process_time()
        read = self.text[self.at : self.at + self.arm.n_tokens]
        self.bits += float(self.memory.score(read).sum())
        self.at = self.n_read = self.at + len(read)
        self._tick(begin)

    def grade_held(self) -> float:
        """As for a model: nothing is learned."""
        tokens = np.frombuffer(self.held, np.uint8).astype(np.int64)
        return float(self.memory.cost(tokens, np.full(len(tokens), GRADE, np.int64)).mean())


def result(reader: Reader, seconds: float, n_bytes: int) -> dict[str, Any]:
    """What a reader had read and paid after equal seconds, and after equal bytes."""
    took, read, bits = reader.after(seconds=seconds)
    _, whole, whole_bits = reader.after(n_bytes=n_bytes)
    _, half, half_bits = reader.after(n_bytes=n_bytes / 2)
    return {
        "arm": reader.arm.label,
        "seed": reader.seed,
        "rate": reader.rate,
        "seconds": round(took, 2),
        "bytes": read,
        "bytes_per_s": round(read / took),
        "bits_per_byte_at_equal_time": round(bits / read, 4),
        "equal_bytes": n_bytes,
        "bits_per_byte_at_equal_bytes": round(whole_bits / whole, 4),
        "bits_per_byte_of_their_second_half": round((whole_bits - half_bits) / (whole - half), 4),
        "bits_per_byte_held_out": round(reader.grade_held(), 4),
        "update_ms": round(1e3 * reader.curve[-1][0] / len(reader.curve), 2),
        "bytes_per_token": round(reader.at / reader.n_read, 3),
        "merges": len(reader.merges) - N_FIXED,
        "demoted": reader.merges.n_demoted,
    }


def contest(readers: list[Reader], seconds: float) -> list[dict[str, Any]]:
    """Give all equal seconds (fewer if one comes to the end of the text first); a row for each."""
    race(readers, seconds)  # type: ignore[arg-type]  # what it needs is `seconds` and `update`
    equal = min(reader.curve[-1][0] for reader in readers)
    n_bytes = min(reader.after(seconds=equal)[1] for reader in readers)
    return [result(reader, equal, n_bytes) for reader in readers]


def try_rates(
    arms: list[Arm], text: bytes, tried: list[dict[str, Any]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each arm and rate of the grid, on a seed and a beginning of its own; those tried already stay."""
    start = 7 * len(text) // 8
    turned, known = text[start:] + text[:start], {(row["arm"], row["rate"]) for row in tried}
    rows = list(tried)
    for arm in (arm for arm in arms if not arm.counts):
        rates = [rate for rate in arguments.rates if (arm.label, rate) not in known]
        readers = [Reader(arm, turned, rate, arguments.width, PILOT) for rate in rates]
        rows += contest(readers, arguments.pilot_seconds) if readers else []
    return rows


def best_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """For each arm the rate that cost least at equal time."""
    ranked = sorted(rows, key=lambda row: row["bits_per_byte_at_equal_time"], reverse=True)
    return {row["arm"]: row["rate"] for row in ranked}  # the last one stays: the cheapest


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each arm: means over seeds, and speed and cost against plain bytes of the same seed."""
    table = []
    for label in dict.fromkeys(row["arm"] for row in rows):
        ours = [row for row in rows if row["arm"] == label]
        other = PLAIN["n-grams" in label or "count" in label]
        theirs = [next(r for r in rows if r["arm"] == other and r["seed"] == row["seed"]) for row in ours]
        summary: dict[str, Any] = {"arm": label, "seeds": len(ours)}
        for key in ("bytes_per_s", "bytes_per_token", "update_ms"):
            summary[key] = round(statistics.mean(row[key] for row in ours), 2)
        ratios = [a["bytes_per_s"] / b["bytes_per_s"] for a, b in zip(ours, theirs, strict=True)]
        summary["times_faster"] = round(statistics.mean(ratios), 2)
        for key in (
            "bits_per_byte_at_equal_time",
            "bits_per_byte_at_equal_bytes",
            "bits_per_byte_of_their_second_half",
            "bits_per_byte_held_out",
        ):
            more = [a[key] - b[key] for a, b in zip(ours, theirs, strict=True)]
            name = key.removeprefix("bits_per_byte_")
            summary[name] = round(statistics.mean(row[key] for row in ours), 3)
            summary[f"more_{name}"] = round(statistics.mean(more), 3)
            summary[f"sd_{name}"] = round(statistics.stdev(more), 3) if len(more) > 1 else 0.0
        table.append(summary)
    return table


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=["segment", "race"])
    parser.add_argument("files", type=Path, nargs="+", help="texts of some hundred kilobytes, read one after another")
    parser.add_argument("--merges", type=int, nargs="+", default=[512, 1024, 2048], help="segment: how many")
    parser.add_argument("--threshold", type=int, default=8, help="segment: how often a pair must come")
    parser.add_argument("--window", type=int, default=16_384, help="segment: in how many pairs")
    labels = [arm.label for arm in ARMS]
    parser.add_argument("--arms", nargs="+", choices=labels, default=labels, help="race: which, beside plain bytes")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--pilot-seconds", type=float, default=8.0, help="for each rate of each arm")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each arm and seed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rows", type=Path, help="a file that rows are added to, so that a long race can be cut")
    parser.add_argument("--keep", metavar="SLUG", help="keep a record under this name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = b"".join(path.read_bytes() for path in arguments.files)
    if arguments.question == "segment":
        figures, rows = answer_segment(text, arguments)
        asked = "How many bytes does a token made online stand for, and one of an offline BPE of the same size?"
    else:
        figures, rows = answer_race(text, arguments)
        asked = "Do dynamic tokens learn a stream faster than plain bytes?"
    if arguments.keep:
        names = ", ".join(path.name for path in arguments.files)
        keep(f"dynamic-tokens-{arguments.keep}", f"{asked} ({names})", figures, rows)


def answer_segment(text: bytes, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Rows for every number of merges."""
    rows = []
    for n_merges in arguments.merges:
        for row in segmented(text, n_merges, threshold=arguments.threshold, window=arguments.window):
            rows.append(row | {"offline": offline(text[: row["after_bytes"]], n_merges)})
            print(json.dumps(rows[-1]), flush=True)
    return {"threshold": arguments.threshold, "window": arguments.window}, rows


def answer_race(text: bytes, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """Rates, then a row for every arm and seed, and the table over seeds."""
    wanted = {*arguments.arms, *(PLAIN["n-grams" in label or "count" in label] for label in arguments.arms)}
    arms = [arm for arm in ARMS if arm.label in wanted]
    kept = [json.loads(line) for line in _lines(arguments.rows)]
    grid = try_rates(arms, text, [row for row in kept if row["seed"] == PILOT], arguments)
    print(*map(json.dumps, grid), sep="\n", flush=True)
    rates = best_rates(grid)
    rows = [row for row in kept if row["seed"] != PILOT]
    for seed in arguments.seeds:
        begin = seed * len(text) // 4
        turned = text[begin:] + text[:begin]
        readers = [
            (CountReader if arm.counts else Reader)(arm, turned, rates.get(arm.label, 0.0), arguments.width, seed)
            for arm in arms
        ]
        rows += contest(readers, arguments.seconds)
        print(*map(json.dumps, rows[-len(arms) :]), sep="\n", flush=True)
        if arguments.rows:
            arguments.rows.write_text("".join(json.dumps(row) + "\n" for row in [*grid, *rows]), "utf-8")
    table = summarise(rows) if rows else []
    print(*map(json.dumps, table), sep="\n")
    return {"rates": rates, "width": arguments.width, **{row["arm"]: row for row in table}}, rows


def _lines(path: Path | None) -> list[str]:
    return path.read_text("utf-8").splitlines() if path and path.exists() else []


if __name__ == "__main__":
    main()
