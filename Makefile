# graphnet: `make study` runs the example study, `make test` the tests. Needs python3 (3.11 to 3.13) and make.
PYTHON ?= python3
HYPOTHESIS_PROFILE ?= default
PYTEST_WORKERS ?= 2
LAW_CHECKS ?= 100000

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STUDY_READY := .venv/.ready-study
DEV_READY := .venv/.ready-dev

# One thread a process: the tests run side by side, and small matrices gain nothing from more.
export OMP_NUM_THREADS ?= 1
export HYPOTHESIS_PROFILE

.DEFAULT_GOAL := help
.PHONY: help study test test-long mutate lint format bench docs clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

study: $(STUDY_READY) ## grow against prune on one small network; prints the table and the report's path
	$(BIN)/graphnet run examples/grow_vs_prune.yaml

test: $(DEV_READY) ## the tests, with the doctests of the package
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) -m "not slow"

test-long: $(DEV_READY) ## 100,000 checks of the laws, then every test, the slow ones too (takes long)
	$(BIN)/python -m graphnet.testing.long --checks $(LAW_CHECKS) --workers $(PYTEST_WORKERS)
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -n $(PYTEST_WORKERS)

mutate: $(DEV_READY) ## break the committed code in named ways: the tests must notice each (about an hour)
	$(BIN)/python scripts/mutate.py --workers $(PYTEST_WORKERS)

lint: $(DEV_READY) ## ruff (rules and format) and mypy in strict mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/link_source.py
	cd typed && ../$(BIN)/python -m mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache graphnet

format: $(DEV_READY) ## let ruff lay out and mend the source
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_READY) ## every benchmark in benchmarks/, one after another
	$(PIP) install --constraint constraints.txt --editable '.[study,dev,benchmark]'
	@set -e; for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

docs: $(DEV_READY) ## the documentation, into site/
	$(BIN)/python scripts/link_source.py
	@# Not --quiet: it hides warnings from --strict too.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean: ## remove what make built, except runs/
	rm -rf .venv typed build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	    "graphnet needs Python 3.11 to 3.13; %s is %d.%d. Name another one: make PYTHON=python3.12" \
	    % (sys.executable, *v))'
	$(PYTHON) -m venv .venv

# A stamp is renewed only when the requirements change, so a second `make` installs nothing.
$(STUDY_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --constraint constraints.txt --editable '.[study]'
	@touch $@

$(DEV_READY): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --constraint constraints.txt --editable '.[study,dev]'
	@touch $@ $(STUDY_READY)
