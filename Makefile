# make demo | reproduce | test | faults | rehearse-face | rehearse-car | rehearse-equal-effect | lint | clean. Each sets up .venv first: about a minute once, nothing after that.
# PYTHON=python3.12 picks the interpreter that .venv is created with (`make clean` first to change it).
PYTHON ?= python3
# TORCH=cpu (or auto, cu126, rocm6.3, ...: `uv pip install --help`) takes the wheels of torch from its own index, which uv
# knows; without it the ordinary ones come from the package index, and bring CUDA along. It holds for the .venv it was made with.
TORCH ?=
UV_VERSION := 0.13.9

BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := examples/digits.yaml
REFINEMENT := examples/refine_digits.yaml
FIRST_EDITS := examples/demo_edits.yaml
REPRODUCTION := examples/reproduce_digits.yaml

# Small machines: one thread per worker process. Nothing is reported to anybody.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1
# Prefect allows its embedded server 20 s, a loaded machine takes longer.
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS ?= 120
# The wheels are large: slow lines and slow disks get their time.
export UV_HTTP_TIMEOUT ?= 300
export UV_COMPILE_BYTECODE_TIMEOUT ?= 600
# Containers often set it; then every process compiles all sources again, and pytest rewrites every test.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce test faults rehearse-face rehearse-car rehearse-equal-effect lint clean

help:
	@echo "make demo       invert the built-in handwritten digits, refine and edit some, and say where the reports lie"
	@echo "make reproduce  every table and figure of the paper on the digits, on one page"
	@echo "make test       run all tests (among them the linters and the import contracts)"
	@echo "make faults     kill, cut and corrupt what can be, and print what it cost; FLAGS=--fault-seed=1 for other moments"
	@echo "make rehearse-face   the paper's experiment to its end, with files made in the published layouts; rehearse-car likewise"
	@echo "make rehearse-equal-effect   an edit of equal effect on a head that the published face detector finds"
	@echo "make lint       run only ruff, mypy and the import contracts"
	@echo "make clean      remove .venv and the caches of the tools; results of runs stay"

setup: $(INSTALLED)

# The stamp is written last, so an interrupted installation is simply gone on with.
$(INSTALLED): pyproject.toml packaging/lsap-archive/pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, '$(PYTHON)' is not one: call make with PYTHON=<interpreter>." >&2; \
	    exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || { \
	    "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "'$(PYTHON)' cannot create environments (no ensurepip): apt-get install python3-venv" >&2; \
	        exit 1; }; \
	    echo "Creating .venv"; \
	    "$(PYTHON)" -m venv --clear .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"
	$(BIN)/python -m uv pip install --python $(BIN)/python --compile-bytecode $(if $(TORCH),--torch-backend=$(TORCH)) \
	    -c constraints.txt -e ".[dev]" || { \
	    test -z "$(TORCH)" || echo "Nothing was installed with TORCH=$(TORCH): such wheels come from torch's own index, and the lines" \
	        "above say whether it can be reached from here. Without TORCH=$(TORCH) make needs the package index alone." >&2; \
	    exit 1; }
	@touch $@

demo: $(INSTALLED)
	$(BIN)/lsap run invert $(DEMO)
	$(BIN)/lsap run refine $(REFINEMENT)
	$(BIN)/lsap run edit $(FIRST_EDITS)
	@archive="$$(sed -n 's/^archive: *//p' $(DEMO))" && \
	    echo "The first picture: $$archive/reports/edit.png" && echo "All reports:       $$archive/reports/index.html" && \
	    echo "To look through:   $(BIN)/lsap archive explore $$archive"

reproduce: $(INSTALLED)
	$(BIN)/lsap run reproduce all $(REPRODUCTION)

# Four processes on two cores: the three that run flows wait a good part of their time.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 4

faults: $(INSTALLED)
	$(BIN)/python -m pytest -q tests/flows/faults --all-faults $(FLAGS)

rehearse-equal-effect: $(INSTALLED)
	@rm -rf archives/rehearsal/equal-effect
	$(BIN)/python -m pytest -q -s tests/rehearsal --rehearse=archives/rehearsal -m rehearsal -k equal_effect

# Files, archive and page lie in archives/rehearsal/; about 5 GB of memory.
rehearse-face rehearse-car: $(INSTALLED)
	$(BIN)/python -m pytest -q -s tests/rehearsal --rehearse=archives/rehearsal -m rehearsal -k $(@:rehearse-%=%)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
