# All need Python 3.11 or later and make, and fill .venv with what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo bulk-demo quick test bounds docs pages bench picture chaos fuzz soak clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/spatialembed demo

# One process of tests a core, at most four: each may take 3 GB.
JOBS ?= logical

# For daily work: everything but the slow tests, which is meant to take under three minutes.
quick: PYTEST = -m 'not slow'
quick test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(JOBS) --maxprocesses 4 --dist worksteal $(PYTEST)

# The compiled kernels with every index checked, compiled apart from the usual ones.
bounds: $(VENV)/.installed-dev
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(VENV)/bounds $(BIN)/pytest -q tests/test_cluster.py \
		tests/test_hostile_maps.py tests/test_loss.py tests/test_labels.py tests/test_outlines.py

# pages: the same without running the notebooks.
pages: NOTEBOOKS = --as-they-are
docs pages: $(VENV)/.installed-docs
	$(BIN)/python docs/generate.py $(NOTEBOOKS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'the guide: site/index.html'

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py

# Long campaigns, see docs/reliability.md; KILLS, RUNS and MINUTES say how long.
chaos: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/chaos.py --kills $(or $(KILLS),20)
	$(BIN)/python benchmarks/bulk.py kills --images 2000 --drivers $(or $(KILLS),20) --workers 100

# 200 generated images by local processes and by Ray: both hashes are the same.
bulk-demo: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bulk.py demo

fuzz: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/fuzz.py --runs $(or $(RUNS),100000) --seconds 3600 $(FUZZ)

soak: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),30)

picture: $(VENV)/.installed
	$(BIN)/python examples/readme_picture.py docs/images/overview.png

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml after a change of what is needed. The full set serves both.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): some minutes, up to 6 GB"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): some minutes, up to 7 GB"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/.installed

# runs/ holds trainings that took hours: it is left alone.
clean:
	rm -rf site docs/generated demo predictions .pytest_cache .mypy_cache .ruff_cache .hypothesis
