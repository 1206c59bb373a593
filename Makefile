# `make demo` and `make test` do all set-up themselves; nothing is needed but Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# one process per core; tests of one file share servers and trained runs
PYTEST := $(BIN)/pytest -n auto --dist loadfile

.PHONY: demo test test-cuda check lint fast slow bench docs golden format clean
.NOTPARALLEL: # each uses every core

demo: $(READY)  ## crawl this Python's documentation, served here, and learn from it for a minute
	$(BIN)/livelm run demo: --for 60s

test: fast slow  ## every test

test-cuda: $(READY)  ## what needs a CUDA device; a file each, as an error of the device ends its process
	for file in few_tokens walk_on_cuda many_tensors deferred_cuda cuda; do $(BIN)/pytest tests/numerics/test_$$file.py || exit; done
	$(BIN)/pytest tests/conformance/test_models.py --device cuda

check: lint fast  ## lint, types, layers and the fast tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fast: $(READY)
	$(PYTEST) -m "not slow"

slow: $(READY)
	$(PYTEST) -m "slow and not alone"
	$(BIN)/pytest -m "slow and alone"

bench: $(READY)  ## the benchmarks; minutes to hours, each prints ratios and keeps a record
	$(BIN)/python -m bench

golden: $(READY)  ## write the golden scores anew: a conscious change of numbers
	$(BIN)/python -m tests.golden.write

docs: $(READY)  ## write the pages that come from records and from settings
	$(BIN)/python -m bench.numbers
	$(BIN)/python -m tests.docs.write_settings

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
