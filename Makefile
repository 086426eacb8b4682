# Set up once, then demo and tests. Another torch: make setup TORCH=torch==2.9.1
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
READY  := .venv/.ready-$(TORCH)
OLDEST := .venv-oldest
NEWEST := .venv-newest
CHROMIUM := .browser/node_modules/@sparticuz/chromium/bin
# What meets other packages: the trainer, the scheduler, accelerate, datasets, evaluate, typer, rich, matplotlib, scipy. `make test`
# has the newest of those; `make newest` adds what comes with other projects.
MEETS_OLDEST := versions registration scheduler callback end_to_end loop no_trainer recipe blocks metric cli show plots report page fitting hub_server
MEETS_NEWEST := versions registration end_to_end other_trainers trackers engines

setup: $(READY)  ## the environment in .venv, torch first: the open range in pyproject would take a CUDA build

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	rm -f .venv/.ready-*
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

downstream: oldest newest  ## the oldest and the newest releases of what we stand on, and other projects' trainers

oldest: $(OLDEST)/.ready-$(TORCH)  ## tests on the lowest releases that pyproject allows, in .venv-oldest
	# They warn of newer releases beside them, and nobody will mend that: a warning is no error here.
	DOWNSTREAM=oldest $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile -W default $(MEETS_OLDEST:%=tests/test_%.py)

$(OLDEST)/.ready-$(TORCH): pyproject.toml tests/downstream/oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet "$(TORCH)"
	$(OLDEST)/bin/python -m pip install --quiet --constraint tests/downstream/oldest.txt -e ".[test]"
	touch "$@"

newest: $(NEWEST)/.ready-$(TORCH)  ## tests on the newest, with TRL, PEFT, trackers, DeepSpeed, in .venv-newest (delete it for newer ones)
	DOWNSTREAM=newest $(NEWEST)/bin/python -m pytest -n 2 --dist loadfile $(MEETS_NEWEST:%=tests/test_%.py)

$(NEWEST)/.ready-$(TORCH): pyproject.toml
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet "$(TORCH)"
	$(NEWEST)/bin/python -m pip install --quiet -e ".[downstream]"
	touch "$@"

bench: setup  ## speed as ratios, measured in one run
	$(BIN)/python tests/bench/bench.py

browser: setup  ## the pages of `hf-wsd report` in a real browser: Playwright, and Chromium for Linux from npm (70 MB)
	$(BIN)/python -m pip install --quiet -e ".[test,browser]"
	npm install --silent --no-save --prefix .browser @sparticuz/chromium@153
	node -e 'fs.writeFileSync(".browser/chromium", zlib.brotliDecompressSync(fs.readFileSync("$(CHROMIUM)/chromium.br")), {mode: 0o755})'
	node -e 'process.stdout.write(zlib.brotliDecompressSync(fs.readFileSync("$(CHROMIUM)/swiftshader.tar.br")))' | tar x -C .browser
	$(BIN)/python -m pytest tests/test_browser.py

figures: setup  ## the pictures of what was measured, drawn again from recipes/results, and of the river valley
	$(BIN)/python recipes/comparison_figures.py recipes/results/compare.jsonl --into recipes/figures
	$(BIN)/python recipes/bigram_figures.py recipes/results/bigram.json --into recipes/figures
	$(BIN)/python recipes/landscape.py recipes/results/landscape.json --into recipes/figures
	$(BIN)/python recipes/river.py --into recipes/figures

.PHONY: setup demo test test-fast check downstream oldest newest bench browser figures
