# `make demo` and `make test` do everything on a fresh machine; the other targets are for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# One thread: a tiny model's threads wait at barriers for longer than they work.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install demo fmt lint types test check bench bench-unlearning bench-recording docs clean FORCE

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python demo/run.py

fmt: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Type checkers can't follow the package-dir mapping, so the three folders are copied into one tree first.
build/typed: FORCE
	rm -rf $@ && mkdir -p $@ && cp -R lmcleaner $@/ && cp -R cli formats $@/lmcleaner/

types: install build/typed
	set -o pipefail; $(BIN)/mypy | sed -E 's,build/typed/lmcleaner/(cli|formats)/,\1/,g; s,build/typed/,,g'

test: install
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist worksteal

check: lint types test

bench: bench-unlearning bench-recording

bench-unlearning: install
	$(BIN)/python benchmarks/modes.py
	$(BIN)/python benchmarks/data_free.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/evaluation.py

bench-recording: install
	env -u OMP_NUM_THREADS $(BIN)/python benchmarks/log.py
	$(BIN)/python benchmarks/ways.py
	$(BIN)/python benchmarks/crash.py
	$(BIN)/python benchmarks/damage.py

docs: install
	$(BIN)/typer lmcleaner.cli.main utils docs --name lmcleaner --title "Command line" --output docs/cli.md

clean:
	rm -rf build demo-run guides modes-run .mypy_cache .ruff_cache .pytest_cache

SHELL := /bin/bash
