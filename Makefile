# Set up once, then demo and tests. Another torch: make setup TORCH=torch==2.9.1
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
READY  := .venv/.ready-$(TORCH)

setup: $(READY)  ## the environment in .venv, torch first: the open range in pyproject would take a CUDA build

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch "$@"

demo: setup  ## a trunk and four decay branches on the embedded corpus, with a report in demo/; goes on where it was
	$(BIN)/hf-wsd demo

test: setup  ## every test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: setup  ## the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: setup  ## formatting, lint, types, the rules of the house, what README says
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

bench: setup  ## speed as ratios, measured in one run
	$(BIN)/python tests/bench/bench.py

.PHONY: setup demo test test-fast check bench
