# make table   set up and run the main job: the vision-centric table of the five methods, on the laptop lab
# make test    set up and pass the tests
PYTHON ?= python3
# Without a GPU the CPU build will do; on a GPU machine plain `torch` from PyPI is the CUDA build. To force one, name it:
#   make table TORCH="torch==2.13.0 --index-url ADDRESS-OF-THE-BUILDS"
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: table seeds real rehearsal test test-all lint check-foundations clean

table: $(STAMP)
	$(BIN)/python -m benchmarks.run --suite vision-centric

seeds: $(STAMP)  ## the lab's table over three seeds, into results/
	$(BIN)/python -m benchmarks.run --suite vision-centric --seeds 0 1 2 --publish results/lab_ornate

real: $(STAMP)  ## the three stages on real records with small models, into results/
	$(BIN)/python -m benchmarks.real --publish results/real_small

rehearsal: $(STAMP)  ## a paper-size recipe's whole path at two layers, killed and resumed, into results/
	$(BIN)/python -m benchmarks.rehearsal --publish results/rehearsal

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check-foundations: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m dpa.lab.foundations --check

# torch first and pinned, so that nothing below pulls another build of it
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
