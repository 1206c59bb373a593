"""`python -m livelm` is `livelm`."""

from livelm.cli import main

main()
