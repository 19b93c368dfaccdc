# All need Python 3.11 or later and make, and fill .venv with what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NAPARI ?= napari
QT ?= PyQt6

.PHONY: demo bulk-demo quick test bounds docs pages plugin package bench picture chaos fuzz soak clean
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

# The plugin for napari. Another one: make plugin NAPARI=napari==0.6.0 QT=PySide6
plugin: $(VENV)/.installed-dev
	plugins/napari-spatialembed/run_tests $(BIN)/python '$(NAPARI)' '$(QT)'

# Wheels and source archives as they would be uploaded; the wheel is tried in a clean environment.
CLEAN := $(VENV)/clean
package: $(VENV)/.installed-dev
	rm -rf dist '$(CLEAN)'
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist plugins/napari-spatialembed
	$(BIN)/twine check --strict dist/*
	@if find dist -name '*.whl' -size +14648k | grep .; then echo 'a wheel above 15 MB' >&2; exit 1; fi
	$(PYTHON) -m venv '$(CLEAN)'
	'$(CLEAN)/bin/python' -m pip install --quiet dist/spatialembed-*.whl
	cd '$(CLEAN)' && bin/spatialembed demo --out demo
	rm -rf '$(CLEAN)'

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

# uv, where it is installed, takes the build of PyTorch that suits the GPU of this machine, without one
# the small CPU build. Where that cannot be had, or does not fit torchvision, pip takes the usual one.
define install
	@if command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python \
			--torch-backend=auto --editable '$(1)'; then \
		$(BIN)/python -c '$(2)' || { echo 'the usual build of PyTorch, then' >&2; \
			$(BIN)/python -m pip uninstall --quiet --yes torch torchvision; \
			$(BIN)/python -m pip install --quiet --editable '$(1)'; }; \
	else $(BIN)/python -m pip install --quiet --editable '$(1)'; fi
endef

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml after a change of what is needed. The full set serves both.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): some minutes, up to 6 GB (1 GB with uv and no GPU)"
	$(call install,.,import torch)
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): some minutes, up to 7 GB"
	$(call install,.[dev],import torchvision)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(call install,.[docs],import torchvision)
	touch $@ $(VENV)/.installed

# runs/ holds trainings that took hours: it is left alone.
clean:
	rm -rf site docs/generated demo predictions .pytest_cache .mypy_cache .ruff_cache .hypothesis
