# Everything a clone needs: Python 3.11 or newer with venv and pip, and make. `make demo` and `make test` work as they are.
.POSIX:

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help demo test test-slow lint benchmark reproduce clean

help:
	@echo 'make demo        see a classifier ruined by bit errors and brought back (./demo)'
	@echo 'make test        run the tests, but for the slow ones'
	@echo 'make test-slow   run the slow tests: statistics, large files'
	@echo 'make lint        check style, types and the direction of imports'
	@echo 'make benchmark   measure speeds beside goals and peers'
	@echo 'make reproduce   measure again what the documents state'
	@echo 'make clean       remove what the others made'

demo: $(VENV)/demo.stamp
	$(BIN)/ckptguard demo --output demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m 'not slow'

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmark: $(VENV)/benchmark.stamp
	$(BIN)/python -m benchmarks.table

# The data are the folder CKPTGUARD_DATA; see reproductions/README.md.
RUNS = build/reproductions
PAGES = docs/results

reproduce: $(VENV)/reproduce.stamp
	mkdir -p $(RUNS)
	test -f $(RUNS)/small-5.safetensors || $(BIN)/python -m reproductions.train small --out $(RUNS)
	$(BIN)/python -m reproductions.vdcnn_figure1 $(RUNS) > $(RUNS)/page && mv $(RUNS)/page $(PAGES)/vdcnn-figure1.md
	$(BIN)/python -m reproductions.number_formats $(RUNS) > $(RUNS)/page && mv $(RUNS)/page $(PAGES)/number-formats.md
	$(BIN)/python -m reproductions.same_results $(RUNS) > $(RUNS)/page && mv $(RUNS)/page $(PAGES)/campaign-robustness.md
	$(BIN)/python -m benchmarks.campaign $${CKPTGUARD_DATA:-../shared/data}/vdcnn-agnews.safetensors \
	    $${CKPTGUARD_DATA:-../shared/data}/resnet18-cifar10.safetensors reproductions/networks.py:resnet18 \
	    > $(RUNS)/page && mv $(RUNS)/page $(PAGES)/campaign-speed.md
	$(BIN)/python -m reproductions.published_masks > $(RUNS)/page && mv $(RUNS)/page $(PAGES)/published-masks.md
	$(BIN)/python -m reproductions.prefix_reuse > $(RUNS)/page && mv $(RUNS)/page $(PAGES)/prefix-reuse.md

# One stamp for every set of extras; it is made again when what is to be installed changes.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ckptguard needs Python 3.11 or newer; name one: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/reproduce.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[test,benchmark,ray,dask]' pytorchfi
	@touch $@

$(VENV)/lint.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[test,lint]'
	@touch $@

$(VENV)/benchmark.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[test,benchmark]'
	@touch $@

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .benchmarks
	find ckptguard tests benchmarks -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true
