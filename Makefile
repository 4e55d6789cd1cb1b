# Needs Python 3.11 or later; everything else goes into .venv. Another Python: make test PYTHON=python3.12. Arguments: make test ARGS="tests/live -x".
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: help venv test faults lint demo bench bench-features bench-memory intervals clinic lock

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

venv: $(VENV)/.ready ## make .venv with the project and what tests and lint need

test: $(VENV)/.ready ## run all tests (those on real services are skipped where Java, Maven or Redis is missing)
	$(BIN)/python -m pytest $(ARGS)

faults: $(VENV)/.ready ## run the live faults: kills, frozen workers, lost tails, upkeep (minutes; needs Kafka's jars and Redis)
	$(BIN)/python -m pytest tests/live -m slow $(ARGS)

lint: $(VENV)/.ready ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(VENV)/.ready ## run the whole system on sample and invented patients, without Docker or Java
	$(BIN)/premonitor demo $(ARGS)

bench: $(VENV)/.bench ## measure speed, latency and growth
	$(BIN)/python tests/bench/run.py $(ARGS)

bench-features: $(VENV)/.bench ## measure the rows of a large log against Polars and DuckDB
	$(BIN)/python tests/bench/matrix.py $(ARGS)

bench-memory: $(VENV)/.bench ## measure whether memory grows with the log (half an hour)
	$(BIN)/python tests/bench/memory.py $(ARGS)

intervals: $(VENV)/.ready ## measure how often the intervals of an evaluation hold a known truth (minutes)
	$(BIN)/python tests/bench/coverage.py $(ARGS)

clinic: $(VENV)/.ready ## print what a model of the simulated clinic finds, beside the published figures
	$(BIN)/python -m tests.bench.clinic $(ARGS)

lock: ## write requirements.lock anew from pyproject.toml (needs uv)
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal --no-emit-index-url --all-extras --upgrade \
	  --output-file requirements.lock pyproject.toml

$(VENV)/.ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "premonitor needs Python 3.11 or later: name one with make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
	  || { echo "$(PYTHON) cannot make virtual environments: install its venv and pip (Debian: apt-get install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[test,lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.ready
	$(INSTALL) --editable '.[bench]'
	@touch $@
