"""Recipes: TOML files turned into frozen, validated settings; unknown keys are refused with the nearest name."""

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from livelm.errors import ConfigError

Device = Literal["cpu", "cuda"]
"""What a network computes on."""


class Settings(BaseModel):
    """Base of every group of settings: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def resolved(self, device: Device = "cpu") -> Self:
        """The same with everything decided that depends on the machine: what a run records, and keeps elsewhere."""
        return self

    def warnings(self, device: Device = "cpu") -> tuple[str, ...]:
        """Sentences about what will go badly with these settings on this machine."""
        return ()


class Part(BaseModel):
    """A section whose `name` picks an entry of a registry; the rest is validated by that entry's own `Config`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    name: str

    def settings(self) -> dict[str, Any]:
        """Everything in the section except the name."""
        return dict(self.model_extra or {})


class RunSettings(Settings):
    """What concerns the run as a whole."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds every random number of the run."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the learner; 0: all cores."""
    device: Device = "cpu"
    """What the network computes on, `cpu` or `cuda`; counts are always the CPU's."""
    capture: bool = True
    """On CUDA: capture updates as graphs, where the model allows it, and replay them."""
    budget: str = ""
    """How much to read before stopping, such as "60s", "10m" or "5MB"; empty: until the stream ends."""


class SourceSettings(Settings):
    """Where the text comes from."""

    uris: tuple[str, ...] = ()
    """SOURCE arguments, as on the command line."""
    text_field: str = "text"
    """The field of a .jsonl line that holds the text."""
    from_end: bool = False
    """Follow a file (`tail:`) from its present end instead of its beginning."""
    crawl: dict[str, Any] = {}
    """Settings of `crawl:` (every dictionary here is checked by the source it belongs to)."""
    demo: dict[str, Any] = {}
    """Settings of `demo:`."""
    kafka: dict[str, Any] = {}
    """Settings of `kafka:`."""
    mix: dict[str, Any] = {}
    """Settings of `mix:`, such as the weights."""
    nats: dict[str, Any] = {}
    """Settings of `nats:`."""
    redis: dict[str, Any] = {}
    """Settings of `redis:`."""
    sessions: dict[str, Any] = {}
    """Settings of `sessions:`."""
    sse: dict[str, Any] = {}
    """Settings of `sse:`."""
    warc: dict[str, Any] = {}
    """Settings of `warc:`."""
    ws: dict[str, Any] = {}
    """Settings of `ws:` and `wss:`."""


class FeedSettings(Settings):
    """How documents become batches."""

    lanes: int = Field(default=1, ge=1, le=1024)
    """Streams read side by side, each with its own carried state. 1 keeps the stream in order."""
    update_tokens: int = Field(default=64, ge=1, le=65536)
    """Tokens per lane between two updates."""
    prefetch: int = Field(default=32, ge=1, le=1024)
    """Batches prepared ahead in the background."""


def _known_policy(text: str) -> str:
    if not re.fullmatch(r"all|state|head|(last|lora):[1-9]\d{0,5}", text):
        raise ValueError("write all, state, head, last:N or lora:R, such as last:1 or lora:4")
    return text


class LearnSettings(Settings):
    """What an update changes, and when it is refused."""

    policy: Annotated[str, AfterValidator(_known_policy)] = "all"
    """What learns: `all`; `state` (what documents begin with, in rwkv7 an offset read beside its state; rates of 1 to
    0.01 suit it); `head`; `last:N` (the last N layers and the head); `lora:R` (adapters of rank R beside linear maps).
    The rest stays as it is."""

    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; a longer one is scaled down to it."""
    explosion: float = Field(default=100.0, gt=1)
    """An update whose gradient norm exceeds this many times the usual one is skipped."""
    average_updates: int = Field(default=0, ge=0)
    """`eval` and `generate` take the mean of weights over about so many updates (not of n-gram rows); 0: the last."""


class GrowSettings(Settings):
    """When the model becomes larger in the middle of the stream, without forgetting; not all architectures can."""

    steps: tuple[Literal["depth", "width", "context"], ...] = ()
    """What is doubled at each plateau, in this order, such as ["depth", "width"]; empty: nothing ever."""
    window_bytes: int = Field(default=32_768, ge=1)
    """Graded bytes that are compared with the best so many before them."""
    gain: float = Field(default=0.02, ge=0)
    """Bits per byte by which they must be cheaper; otherwise this is a plateau."""
    rate_factor: float = Field(default=0.7071, gt=0, le=1)
    """Every growth multiplies all rates by this."""
    warmup: int = Field(default=100, ge=0)
    """Updates after a growth until the full rate is reached again."""


class CheckpointSettings(Settings):
    """When a run saves itself."""

    every_s: float = Field(default=300.0, ge=0)
    """Seconds between checkpoints; 0 saves after every update. A killed run learns again what came after the last."""
    keep: int = Field(default=2, ge=1)
    """Complete checkpoints kept on disk."""


class RehearsalSettings(Settings):
    """How often the network learns again from slices of what it learned before, and from which."""

    share: float = Field(default=0.0, ge=0, le=0.9)
    """Fraction of all updates that rehearse: 0.5 is one after each update by what is new; 0: none."""
    how: Literal["uniform", "surprise"] = "uniform"
    """How slices are drawn: each alike, or the surprising (by what they cost when last looked at) more often."""
    buffer_bytes: int = Field(default=4 << 20, ge=1024)
    """Most bytes that slices may take, in memory and in a checkpoint; they are a uniform sample of the stream."""
    slices: int = Field(default=4, ge=1, le=1024)
    """Slices read side by side in one update."""
    slice_tokens: int = Field(default=64, ge=1, le=4096)
    """Tokens of a slice that are learned."""
    context_tokens: int = Field(default=32, ge=1, le=65536)
    """Tokens before them that are only read."""
    uniform_share: float = Field(default=0.2, ge=0.01, le=1)
    """With `surprise`: the share of draws that are uniform all the same."""
    alpha: float = Field(default=1.0, ge=0, le=8)
    """With `surprise`: the other draws are in proportion to the surprise to this power."""
    beta: float = Field(default=1.0, ge=0, le=1)
    """With `surprise`: how far the loss makes up for uneven draws; 1: wholly, in expectation it is uniform; 0: not."""


class HoldoutSettings(Settings):
    """Stretches of the stream that are graded and not learned, so that forgetting can be seen (`livelm eval RUN`)."""

    share: float = Field(default=0.0, ge=0, le=0.5)
    """Probability that a stretch is held out; 0: none."""
    stretch_updates: int = Field(default=8, ge=1, le=1 << 20)
    """Updates that are held out together."""
    buffer_bytes: int = Field(default=1 << 20, ge=1024)
    """Most bytes that slices of them may take; they are a uniform sample of all that was held out."""
    slice_tokens: int = Field(default=64, ge=1, le=4096)
    """Tokens of a slice."""
    context_tokens: int = Field(default=64, ge=1, le=65536)
    """Tokens before them that are only read."""


class SpoolSettings(Settings):
    """The durable copy of a stream that cannot be read twice."""

    segment_bytes: int = Field(default=16 << 20, ge=4096)
    """A new file is begun after this many bytes."""
    max_bytes: int = Field(default=4 << 30, ge=8192)
    """Most bytes on disk; the oldest that a checkpoint no longer needs go first, then the source waits."""


class SignalsSettings(Settings):
    """What is measured of the stream beside its cost, when that is an alarm, and a gate before learning."""

    window_bytes: int = Field(default=0, ge=0, le=16384)
    """Bytes of a window that K, C and S are measured on: 512 for a gate, 1024 to 4096 else, at least 64; 0: none."""
    drift: float = Field(default=12.0, gt=4)
    """Page and Hinkley's threshold of a drift alarm, in standard deviations of the signal summed over windows."""
    spike: float = Field(default=6.0, gt=0)
    """Standard deviations by which a single window must stand out to be a spike."""
    burn_in: int = Field(default=10, ge=0)
    """Windows that only teach what is usual, at first and after a drift; nor can they close the gate."""
    gate: Literal["off", "complexity", "disorder", "negentropy"] = "off"
    """The signal of the input that the gate follows; while it is closed the stream is graded but not learned from."""
    gate_close: float = 0.54
    """The gate closes when the mean of its signal reaches this."""
    gate_open: float = 0.5
    """It opens when the mean has come back to this; above `gate_close`, low values close it instead of high ones."""
    gate_decay: float = Field(default=0.2, ge=0, lt=1)
    """Decay per window of that mean; 0: each window alone."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if 0 < self.window_bytes < 64:
            raise ValueError(f"window_bytes={self.window_bytes} is too short to say anything; take 64 or more, or 0")
        if self.gate != "off" and not self.window_bytes:
            raise ValueError(f"gate={self.gate!r} follows windows, but window_bytes is 0; set it, say to 1024")
        if self.gate_close == self.gate_open:
            raise ValueError(f"gate_close and gate_open are both {self.gate_open}; set them apart, or it flaps")
        return self


class Recipe(Settings):
    """Everything that decides what a run does."""

    name: str = "run"
    run: RunSettings = RunSettings()
    source: SourceSettings = SourceSettings()
    tokenizer: Part = Part(name="bytes")
    feed: FeedSettings = FeedSettings()
    model: Part
    """The network; `none` for a memory alone."""
    memory: Part = Part(name="none")
    """What learns from one look; `none` for a network alone."""
    optimizer: Part
    schedule: Part = Part(name="constant")
    learn: LearnSettings = LearnSettings()
    grow: GrowSettings = GrowSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    spool: SpoolSettings = SpoolSettings()
    signals: SignalsSettings = SignalsSettings()
    rehearsal: RehearsalSettings = RehearsalSettings()
    holdout: HoldoutSettings = HoldoutSettings()


SIZES = ("tiny", "small", "base")
SHIPPED = Path(__file__).parent / "recipes"
"""Recipes that come with livelm; `recipes` in the source tree points here."""
S = TypeVar("S", bound=BaseModel)


def load_recipe(path: Path | None, size: str, changes: Sequence[str] = ()) -> Recipe:
    """Build a recipe from a file (whole sections replace those of the size), then the `--set` changes, in order.

    Raises ConfigError naming the file, key and value at fault.
    """
    values = _read_size(size)
    if path is not None:
        values.update(load_toml(path))
    for change in changes:
        _apply(values, change)
    return validate(Recipe, values, "")


def change_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with `--set` changes, in order. Raises ConfigError naming the key and value at fault."""
    values = {name: value for name, value in recipe.model_dump(mode="json").items() if value is not None}
    for change in changes:
        _apply(values, change)
    return validate(Recipe, values, "")


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; `recipes/NAME.toml` or `NAME.toml`, where there is none, is the recipe that livelm ships.

    Raises ConfigError naming it and the line at fault.
    """
    own = SHIPPED / path.name
    if not path.exists() and path in (Path(path.name), Path("recipes", path.name)) and own.exists():
        path = own
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(file.name for file in SHIPPED.glob("*.toml")))
        raise ConfigError(f"there is no recipe {str(path)!r}. livelm ships {names}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error}.") from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back to an equal one."""
    values = recipe.model_dump(mode="json")
    top = [f"{key} = {_toml_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for section, entries in values.items():
        if isinstance(entries, dict):
            kept = {key: value for key, value in entries.items() if value is not None}  # TOML has no null
            top += ["", f"[{section}]", *(f"{key} = {_toml_value(value)}" for key, value in kept.items())]
    return "\n".join(top) + "\n"


def validate(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """Build settings from plain values; `where` is their dotted place in the recipe, such as `model`.

    Raises ConfigError that names the key, the value and what would be right.
    """
    try:  # through JSON, because only there strict mode takes an array for a tuple
        return kind.model_validate_json(json.dumps(dict(values), default=str))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(kind, where, e) for e in error.errors())) from None


class Budget(Settings):
    """How much a run may use; None: no limit of that kind."""

    seconds: float | None = None
    n_bytes: int | None = None


_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_UNITS_B = {"b": 1, "kb": 1000, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_budget(text: str) -> Budget:
    """Read "60s", "10m", "2h", "500KB", "5MB", "1GiB"; empty means no limit.

    >>> parse_budget("5MB").n_bytes
    5000000
    """
    if not text:
        return Budget()
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    unit = match[2].lower() if match else ""
    if match and float(match[1]) > 0 and unit in _UNITS_S:
        return Budget(seconds=float(match[1]) * _UNITS_S[unit])
    if match and float(match[1]) > 0 and unit in _UNITS_B:
        return Budget(n_bytes=max(1, int(float(match[1]) * _UNITS_B[unit])))
    raise ConfigError(f"--for is {text!r}; give a time or an amount, such as 60s, 10m, 2h, 500KB or 5MB.")


def _read_size(size: str) -> dict[str, Any]:
    if size not in SIZES:
        raise ConfigError(f"--size is {size!r}. Known: {', '.join(SIZES)}.")
    return tomllib.loads(resources.files("livelm").joinpath(f"sizes/{size}.toml").read_text("utf-8"))


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {change!r}: write it as section.key=value, such as model.d_model=256.")
    section = values
    for name in path[:-1]:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change!r}: {name!r} is a value, not a section.")
        section = inner
    value = _parse_value(text.strip())
    if path[-1] == "name" and len(path) == 2 and section.get("name") != value:
        section.clear()  # another architecture: the settings of the one before do not apply to it
    section[path[-1]] = value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: --set model.name=worker


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):  # an inline table, such as the settings of one source
        pairs = (f"{json.dumps(key)} = {_toml_value(inner)}" for key, inner in value.items() if inner is not None)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf and nan, which JSON does not have
    return json.dumps(value, ensure_ascii=False)  # JSON's strings, numbers and booleans are TOML's too


def _explain(kind: type[BaseModel], where: str, error: Any) -> str:
    place = ".".join([where, *map(str, error["loc"])]).strip(".")
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(kind, error["loc"][:-1]))
        near = get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        advice = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
        return f"unknown setting {place!r} (= {error['input']!r}). {advice}"
    if error["type"] == "missing":
        return f"{place!r} is missing: it has no default, so the recipe must set it."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # two settings that do not go together
        return f"{place!r}: {message}."
    return f"{place!r} is {error['input']!r}: {message[0].lower()}{message[1:]}."


def _fields_at(kind: type[BaseModel], path: tuple[Any, ...]) -> set[str]:
    for name in path:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return set()
        kind = inner
    return set(kind.model_fields)
