"""Every error livelm raises on purpose, drawn as one tree; each message says what, where, and what to do next.

LivelmError                 exit code 1
├── ConfigError             2   a recipe, a setting or a command line is wrong
├── SourceError             3   the stream cannot be read (missing, unreadable, empty, unreachable)
│   └── SpoolError          3   the durable copy of a live stream is damaged
├── RunError                4   a run directory cannot be used (locked, foreign, newer, damaged)
│   ├── CheckpointError     4   a checkpoint is damaged or belongs to another recipe
│   └── JournalError        4   the journal is damaged
├── StorageError            5   the disk is full or refuses to write; what was saved is intact
├── ContractError           6   score-first, a shape or a vocabulary was violated: a programming error
└── Unavailable             7   an optional part is not installed; says the one line that installs it
"""


class LivelmError(Exception):
    """Base of all expected failures; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(LivelmError):
    """A recipe, a setting or a command line is wrong."""

    exit_code = 2


class SourceError(LivelmError):
    """The stream cannot be read: missing, unreadable, empty or unreachable."""

    exit_code = 3


class SpoolError(SourceError):
    """The durable copy of a live stream is damaged in the middle."""


class RunError(LivelmError):
    """A run directory cannot be used: locked, foreign, newer or damaged."""

    exit_code = 4


class CheckpointError(RunError):
    """A checkpoint is damaged or belongs to another recipe."""


class JournalError(RunError):
    """The journal is damaged or was written by a newer livelm."""


class StorageError(LivelmError):
    """The disk is full or refuses to write; everything saved before is intact."""

    exit_code = 5


class ContractError(LivelmError):
    """A contract between parts was broken (score-first, shapes, vocabulary): a programming error."""

    exit_code = 6


class Unavailable(LivelmError):
    """An optional part is not installed; the message names the line that installs it."""

    exit_code = 7
