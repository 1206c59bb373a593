"""`livelm` and `python -m livelm`: the command line, loaded so that Ctrl-C while it loads ends quietly too."""

import gc
import sys

gc.disable()  # four full collections while everything loads, and those of the exit: a quarter of what `--help` takes
try:
    from livelm.cli import main
except KeyboardInterrupt:  # loading torch takes seconds, in which people change their mind
    sys.exit(130)
gc.freeze()  # what was loaded stays: a run never looks at its 400,000 objects again
gc.enable()

__all__ = ["main"]

if __name__ == "__main__":
    main()
