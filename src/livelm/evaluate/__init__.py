"""How good a run is: the baselines beside it, tables and pictures."""
