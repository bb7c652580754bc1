# Every target sets itself up: a virtual environment in .venv, filled by pip under constraints.txt.
# The stamps in .venv say which extras are installed; they are redone when pyproject.toml or constraints.txt changes.
# pip's own byte compilation, on one core, is half of an installation: the demo leaves it to the first import, and the
# tests, which start many processes, do it on all cores.

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt
# Tests and benchmarks compare timings and results of small tensors: more threads make both noisier, not faster.
THREADS ?= 1
WORKERS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
# All but kernels, which needs a GPU, models, which writes a page, and fidelity, which needs a model of yours.
BENCHMARKS ?= matcher ttft stages tiers reads scores decode serving memory ingestion integrations
SOURCES := samkv_rag kernels integrations tests $(wildcard benchmarks training notebooks)

SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
find_python = $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	if $$p -c '$(SUITABLE)' >/dev/null 2>&1; then echo $$p; break; fi; done)
PYTHON ?= $(find_python)

.DEFAULT_GOAL := help
.PHONY: help demo test test-root lint format typecheck reader bench notebooks results clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A creation that was interrupted leaves a python without pip: start over then. Anything else in .venv is kept.
define venv
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		python="$(PYTHON)"; \
		if [ -z "$$python" ]; then \
			echo "make: Python 3.11 to 3.14 with the venv module is needed; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; \
		fi; \
		echo "creating $(VENV) with $$python"; "$$python" -m venv --clear $(VENV); \
	fi
endef

$(VENV)/cli.stamp: pyproject.toml constraints.txt
	$(venv)
	$(INSTALL) -e '.[cli]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(venv)
	$(INSTALL) -e '.[cli,dev]'
	@$(PY) -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true  # some packages ship templates that are no Python
	@touch $(VENV)/cli.stamp $@

demo: $(VENV)/cli.stamp  ## ingest the bundled handbook and answer ten questions from its caches
	$(VENV)/bin/samkv-rag demo $(DEMO_ARGS)

test: export OMP_NUM_THREADS = $(THREADS)
test: lint typecheck  ## everything that CI runs: style, types, tests
	$(PY) -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-root: export OMP_NUM_THREADS = $(THREADS)
test-root: export SAMKV_TEST_ROOT = 1
test-root: $(VENV)/dev.stamp  ## the tests that need root or Debian packages
	$(PY) -m pytest -m root $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp  ## ruff: rules and format
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)

typecheck: $(VENV)/dev.stamp  ## mypy, strict
	$(PY) -m mypy

format: $(VENV)/dev.stamp  ## rewrite the sources in the project's format
	$(PY) -m ruff check --fix $(SOURCES)
	$(PY) -m ruff format $(SOURCES)

reader: $(VENV)/dev.stamp  ## train the small bundled reader again (hours on two cores; see [real] in training/config.toml)
	$(PY) -m training.train

bench: export OMP_NUM_THREADS = $(THREADS)
bench: $(VENV)/dev.stamp  ## run the benchmarks (docs/benchmarks.md), or BENCHMARKS="ttft memory"; rows go to benchmarks/results
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(PY) -m benchmarks.$$name; done

notebooks: export OMP_NUM_THREADS = $(THREADS)
notebooks: $(VENV)/dev.stamp  ## run the notebooks and keep what they show
	$(PY) -m notebooks.execute

results: $(VENV)/dev.stamp  ## write docs/results.md and its pictures from the records in benchmarks/results/eval
	$(VENV)/bin/samkv-rag report $(sort $(patsubst %/run.json,%,$(wildcard benchmarks/results/eval/*/run.json))) --out docs/results.md

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find samkv_rag kernels integrations tests -name __pycache__ -type d -prune -exec rm -rf {} +
