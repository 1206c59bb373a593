"""A process of the command line does not look for garbage in what it loads."""

import subprocess
import sys

LOAD = "import gc, livelm.__main__; print(gc.isenabled(), gc.get_freeze_count(), gc.get_stats()[0]['collections'])"


def test_what_is_loaded_is_never_collected() -> None:
    enabled, n_frozen, n_collections = subprocess.check_output([sys.executable, "-c", LOAD], text=True).split()
    assert enabled == "True"
    assert int(n_frozen) > 100_000
    assert int(n_collections) < 50  # 590 were it collected as it loads
