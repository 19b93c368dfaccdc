# `make demo` and `make test` need Python 3.10 or later and make; each fills .venv with what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench picture clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/spatialembed demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/run.py

picture: $(VENV)/.installed
	$(BIN)/python examples/readme_picture.py docs/images/overview.png

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml after a change of what is needed. The full set serves both.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf demo runs predictions .pytest_cache .mypy_cache .ruff_cache .hypothesis
