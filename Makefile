# demo: the whole road on real video · study: the papers' claims tried · check: lint and the quick tests, before a commit · test: all tests · test-gpu: those that need a GPU ·
# lint: ruff and mypy · bench: our speed beside others'. Each makes .venv when it is missing.
PYTHON ?= python3
STORE ?= demo/store
# A file's tests stay in one process: they share what its fixtures made. Files begin in their order, the longest (of the
# cluster's) among the first, as else they were the last: a file of few tests counts as a short one.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin

.PHONY: demo study check test test-gpu lint bench bench-models bench-encoding bench-sharding bench-flow bench-store bench-loader \
  bench-transforms bench-train bench-scale bench-endpoint check-machine
.DEFAULT_GOAL := demo

demo: .venv/installed
	$(BIN)/python -m tests.demo --store "$(STORE)"

study: .venv/installed
	$(BIN)/python -m tests.study --readme README.md --picture configs/study.png

check: lint
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not cluster"

test: .venv/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu tests/pretrain

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-models bench-encoding bench-sharding bench-flow bench-store bench-loader bench-transforms bench-train \
  bench-scale bench-endpoint

bench-models: .venv/installed
	$(BIN)/python -m tests.benchmarks.models

bench-encoding: .venv/installed
	$(BIN)/python -m tests.benchmarks.encoding

bench-sharding: .venv/installed
	$(BIN)/python -m tests.benchmarks.sharding

bench-flow: .venv/installed
	$(BIN)/python -m tests.benchmarks.flow

bench-store: .venv/installed
	$(BIN)/python -m tests.benchmarks.store

bench-transforms: .venv/installed
	$(BIN)/python -m tests.benchmarks.transforms

bench-train: .venv/installed
	$(BIN)/python -m tests.benchmarks.training

bench-scale: .venv/installed
	$(BIN)/python -m tests.benchmarks.planning
	$(BIN)/python -m tests.benchmarks.order
	$(BIN)/python -m tests.benchmarks.scale --ray

bench-endpoint: .venv/installed
	$(BIN)/python -m tests.benchmarks.endpoint

bench-loader: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m tests.benchmarks.loader --out bench/loader.json
	$(BIN)/python -m tests.benchmarks.loader --s3
	$(BIN)/python -m tests.benchmarks.loader --leak

check-machine:
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON). Install Python 3.11 or later (Debian: apt-get install python3), or name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V): 3.11 or later is needed; name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: Python's venv. Debian: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "missing: Python's headers (Python.h). Debian: apt-get install python3-dev"; exit 1; }
	@command -v g++ >/dev/null || { echo "missing: g++ (DeepSpeed builds its operations with it). Debian: apt-get install g++"; exit 1; }

.venv/installed: pyproject.toml constraints.txt | check-machine
	@echo "installing into .venv (a few minutes, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray,dev]'
	@touch $@
