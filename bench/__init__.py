"""Measurements: run by hand, never timed tests; each prints ratios and can keep a record."""
