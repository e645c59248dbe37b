# Two commands do everything: `make demo` runs the main job, `make test` the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo lint test test-slow test-slurm test-gpu check

help:
	@echo "make setup      environment in $(VENV)"
	@echo "make demo       the main job on generated images; IMAGES=folder for your own"
	@echo "make test       the tests (10 minutes on 2 cores)"
	@echo "make check      ruff, pyright, import-linter and the unit tests"
	@echo "make test-slow  the long drills"
	@echo "make test-slurm drills under a real Slurm on this machine (root, slurm-wlm and munge installed)"
	@echo "make test-gpu   the tests that need a GPU"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@echo "setting up $(VENV) (about 3 minutes, 6 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1" setuptools wheel
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

demo: setup
	$(BIN)/python examples/demo.py --images "$(IMAGES)"

test: setup
	$(BIN)/pytest -q -m "not slow and not gpu and not slurm" -n 2

test-slow: setup
	$(BIN)/pytest -q tests/unit -m "slow and not gpu and not slurm" --timeout 1500 -n 2
	$(BIN)/pytest -q tests/integration -m "slow and not gpu and not slurm" --timeout 1500

test-slurm: setup
	$(BIN)/pytest -q -m slurm --timeout 1500

test-gpu: setup
	$(BIN)/pytest -q -m gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

check: lint
	$(BIN)/pytest -q tests/unit -m "not slow and not gpu and not slurm" -n 2
