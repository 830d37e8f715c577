# `make demo` and `make test` do all their own set-up: a virtual environment in $(VENV) with pinned packages.
VENV ?= .venv
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.birder-ray-installed
# birder-ray as users install it, and Ray with its dashboard, beside what $(VENV) has: for the tests that submit jobs
CLUSTER := $(VENV)/cluster
RESULTS := benchmarks/results
ROUNDS ?= 3
# Without its needs: it asks for an older pyarrow than ours, and works with this one
DAFT := daft==0.7.26
FAST := not (ray or s3 or chaos or browser or gpu or slow)

.DEFAULT_GOAL := help
.PHONY: help setup demo check format test test-fast chaos bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## create $(VENV) and install everything, pinned

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "birder-ray needs Python 3.11 or newer: install it, or name it with PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

$(CLUSTER)/.installed: $(INSTALLED) $(shell find birder_ray -name '*.py')
	$(BIN)/python -m venv --without-pip $(CLUSTER)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(CLUSTER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth
	$(BIN)/python -m pip --python $(CLUSTER)/bin/python install --quiet --disable-pip-version-check -c constraints.txt 'ray[default]'
	$(BIN)/python -m pip --python $(CLUSTER)/bin/python install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	@touch $@

demo: setup  ## score bundled real photos with real weights, offline
	$(BIN)/birder-ray demo

check: setup  ## formatting, lint, types, import directions
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite the code as `make check` wants it
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

test: setup $(CLUSTER)/.installed  ## every test that runs without a GPU
	$(BIN)/python -m pytest -m "not gpu" --durations=30

test-fast: setup  ## the unmarked tests: no Ray, no server, seconds
	$(BIN)/python -m pytest -m "$(FAST)"

chaos: setup  ## runs disturbed at seeded instants and resumed: SEEDS=200 of them, or SEED=7 again
	CHAOS_SEEDS=$(SEEDS) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -q -s -p no:cacheprovider tests/chaos

# $(call measured,SCRIPT,NETWORK,OPTIONS): its figures and its table; on the terminal, each figure as it comes
measured = $(BIN)/python benchmarks/$(1).py --network $(2) --rounds $(ROUNDS) $(3) \
	--json $(RESULTS)/$(1)-$(2).json > $(RESULTS)/$(1)-$(2).md

bench: export BIRDER_RAY_CACHE := $(CURDIR)/build/bench
bench: setup  ## the figures of docs/performance.md: some 90 minutes of 2 cores that do nothing else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(DAFT)
	rm -rf $(BIRDER_RAY_CACHE) && mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/accuracy.py --birder-ray > $(RESULTS)/accuracy.txt
	$(call measured,startup,hgnet_v2_b2)
	$(call measured,throughput,hgnet_v2_b2)
	$(call measured,throughput,efficientnet_lite0,--source tar folder parquet s3)
	$(call measured,throughput,hieradet_small,--rounds 2)
	$(call measured,peers,hgnet_v2_b2,--images 1920 --rounds 2)
	$(call measured,peers,efficientnet_lite0,--images 1280 --rounds 2)
	$(call measured,memory,efficientnet_lite0,--rounds 1 --images 2560)
	$(call measured,memory,hgnet_v2_b2,--rounds 1 --images 640)
	$(call measured,engines,hgnet_v2_b2,--rounds 1)
	$(BIN)/python benchmarks/plot.py $(RESULTS)

clean:  ## remove what the tools and the demo left here, but not $(VENV)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache birder-ray-demo build dist
	find birder_ray tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
