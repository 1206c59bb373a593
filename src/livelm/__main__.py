"""`livelm` and `python -m livelm`: the command line, loaded so that Ctrl-C while it loads ends quietly too."""

import sys

try:
    from livelm.cli import main
except KeyboardInterrupt:  # loading torch takes seconds, in which people change their mind
    sys.exit(130)

__all__ = ["main"]

if __name__ == "__main__":
    main()
