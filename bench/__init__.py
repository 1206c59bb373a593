"""Measurements: run by hand, never timed tests; each prints ratios and can keep a record."""

import livelm  # noqa: F401  # before torch: it says how long OpenMP spins
