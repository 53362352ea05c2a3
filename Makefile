# make quickstart   set up and run the main job      make test        set up, lint, and run every test
# make setup        set up only                      make test-fast   only the tests that take no model
# make docs         the documentation site, in site/; needs `make test` once, or pip install '.[docs]'

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that run test files side by side.
WORKERS ?= 2

.PHONY: setup quickstart test test-fast lint types docs benchmarks clean

setup:
	@$(PYTHON) tools/setup.py --venv $(VENV)

quickstart:
	@$(PYTHON) tools/setup.py --venv $(VENV)
	@$(BIN)/curate run pipelines/quickstart.yaml

test:
	@$(PYTHON) tools/setup.py --venv $(VENV) --test
	@$(MAKE) --no-print-directory lint types
	@$(BIN)/python -m pytest -q --durations=25 -n $(WORKERS) --dist loadfile

test-fast:
	@$(PYTHON) tools/setup.py --venv $(VENV) --test
	@$(BIN)/python -m pytest -q -m "not slow and not vllm"

lint:
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types:
	@$(BIN)/mypy

docs:
	@$(BIN)/python tools/reference.py
	@$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
