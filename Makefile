# Two commands need no preparation beyond Python 3.11: `make run` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first interpreter that will do; another one: make run PYTHON=/path/to/python3
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
BIN := .venv/bin
READY := .venv/ready
# Nothing of ours is written outside this folder.
export BUF_CACHE_DIR := $(CURDIR)/build/buf
export UV_CACHE_DIR := $(CURDIR)/build/uv
PROTOS := $(shell find protos -name '*.proto')
ARGS ?=

.PHONY: help run compiled test fuzz mutants mutation-run explore lint lint-style lint-types lint-protos format proto proto-release lock bench engines clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Rebuilt only when the lock or the project's settings change: every later `make` starts at once.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Parley needs Python 3.11 or newer with venv; name it: make run PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; }
	@echo "Installing $$(grep -c '==' requirements.lock) locked packages into .venv (once)"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --no-input --no-cache-dir --progress-bar off \
		--require-hashes -r requirements.lock | sed -n 's/^Collecting \([^ ]*\).*/  \1/p; s/^Installing collected.*/  unpacking/p'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-cache-dir --no-index --no-deps --no-build-isolation --editable .
	@touch $@

compiled: $(READY) ## compile the modules that every message goes through (needs a C compiler; Parley runs without, too)
	@$(BIN)/python services/compile.py

# Made once by itself; later edits make `parley up` say that it runs on the sources until `make compiled`.
build/compiled/manifest.json: | $(READY)
	@$(BIN)/python services/compile.py

run: $(READY) | build/compiled/manifest.json ## set up if needed and start Parley on this machine (ARGS="--listen 127.0.0.1:7700 --data DIR")
	@# In a terminal Ctrl-C belongs to the server alone (a job of its own), so that make ends as the server does: with 0.
	@if [ -t 0 ]; then set -m; $(BIN)/parley up $(ARGS); exit $$?; fi; exec $(BIN)/parley up $(ARGS)

test: $(READY) compiled ## run all tests (one tier: .venv/bin/pytest tests/unit)
	@# Sets iterate alike in every run, so that a simulation's seed means the same everywhere.
	PYTHONHASHSEED=0 $(BIN)/python -m pytest --durations=15 $(ARGS)

# Their tools come with the first of these commands only.
.venv/proof: requirements-proof.lock $(READY)
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-cache-dir --quiet --require-hashes -r $<
	@touch $@

fuzz: .venv/proof ## fuzz every entry that takes bytes, guided by coverage (SECONDS=60 each, ARGS="token keys_file" only these)
	$(BIN)/python -m tests.fuzz.coverage_guided $(or $(SECONDS),60) build/fuzz $(ARGS)

mutants: $(READY) ## break every rule of the design, one at a time; prints which guarantee fell after how many seeds
	PYTHONHASHSEED=0 $(BIN)/python -m tests.simulation.mutants $(ARGS)

mutation-run: .venv/proof ## make every small mistake in the pure cores and see a test fall (ARGS="decide --jobs 1" only these modules)
	PYTHONHASHSEED=0 $(BIN)/python -m tests.mutation_run $(ARGS)

explore: $(READY) ## walk all interleavings of two stores with a crash or an error at every step (minutes; FAULTS=2: hours)
	EXPLORE_FAULTS=$(or $(FAULTS),1) $(BIN)/python -m pytest tests/unit/test_store_exploration.py --durations=0 $(ARGS)

lint: lint-style lint-types lint-protos ## check style, types and protos (make -k lint: all findings, not the first step's)

lint-style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(READY)
	$(BIN)/mypy

lint-protos: $(READY) build/protos.binpb
	$(BIN)/python protos/generate.py check
	cd protos && ../$(BIN)/buf lint ../build/protos.binpb --path parley --config buf.yaml
	cd protos && ../$(BIN)/buf breaking ../build/protos.binpb --against released.binpb --path parley --config buf.yaml

build/protos.binpb: $(PROTOS) $(READY)
	$(BIN)/python protos/generate.py descriptors $@

format: $(READY) ## apply the style
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

proto: $(READY) ## generate libs/parley from protos/
	$(BIN)/python protos/generate.py code

proto-release: $(READY) ## with a release: take the present protos as what later ones are compared with
	$(BIN)/python protos/generate.py release

lock: $(READY) ## solve pyproject.toml into requirements.lock (ARGS=--upgrade: newest versions)
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --quiet --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file requirements.lock $(ARGS)
	$(BIN)/uv pip compile --group proof --constraint requirements.lock --universal --python-version 3.11 --generate-hashes --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements-proof.lock $(ARGS)

bench: $(READY) compiled ## measure 1-1 messages on this machine (docs/performance.md)
	$(BIN)/parley bench messages --pairs 100 --window 8 --seconds 20 $(ARGS)

engines: $(READY) ## start Kafka, Cassandra for ScyllaDB, and Consul on this machine (stop: .venv/bin/parley engines down)
	$(BIN)/parley engines up $(ARGS)

clean: ## remove .venv, build and caches; data folders stay
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
