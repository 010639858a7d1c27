# Every target makes the virtual environment itself, and again when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-flower test test-all resilience fuzz mutants lint types wheel docs notebooks bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One pip call: torch and torchvision must be chosen together, or torchvision does not load.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Expected Python 3.11 or later but got " \
	  + sys.version.split()[0] + ": name another with make PYTHON=...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet $(addprefix -c ,$(CONSTRAINTS)) -e '.[dev]'
	@touch $@

demo: $(STAMP) ## run the demo: a federated run on bundled data, with a table and plots at the end
	CUDA_VISIBLE_DEVICES= $(BIN)/hetfl fit -c configs/demo.yaml  # a visible GPU would prevent worker processes

demo-flower: $(STAMP) ## run a federation of a server and three nodes over the loopback, with a table at the end
	OMP_NUM_THREADS=1 $(BIN)/hetfl flower demo --clients 0-2 --clients 3-5 --clients 6-8 \
	  -c configs/experiment/flower_digits.yaml

# Each worker takes one half of the tests, in their order, and the idle one steals from the other's rest: what a file
# prepares for its tests is then made once. The empty variable lets pytest keep the bytecode of the tests.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -q
TWO := -n 2 --dist worksteal

test: $(STAMP) ## run the tests
	$(PYTEST) $(TWO)

test-all: $(STAMP) ## run the tests, also those that take minutes: federations of real processes, kills inside a write
	$(PYTEST) $(TWO) -m "not slow"
	$(PYTEST) -m slow

resilience: $(STAMP) ## kill runs of ten configurations 100 times, 40 of them inside a checkpoint's write, and compare
	OMP_NUM_THREADS=1 HETFL_KILLS=10 $(BIN)/pytest -n 2 -q -m slow tests/test_resilience.py -k killed

fuzz: $(STAMP) ## decode mutated messages, 1 000 000 or HETFL_FUZZ of them, by a new seed each time or HETFL_FUZZ_SEED
	OMP_NUM_THREADS=1 HETFL_FUZZ=$${HETFL_FUZZ:-1000000} $(BIN)/pytest -q -s tests/test_fuzz_wire.py -k mutated

mutants: $(STAMP) ## put 150 and more bugs into copies of the source, and print those that no test notices; ARGS="--seed 1"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants --jobs 2 $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## check the types
	$(BIN)/mypy hetfl tests

wheel: $(STAMP) ## build the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

docs: $(STAMP) ## build the documentation into build/docs/; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

notebooks: $(STAMP) ## run the notebooks and store their outputs; ARGS="01_first_run" runs one
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.notebook_runs $(ARGS)

bench: $(STAMP) ## measure speed
	$(BIN)/python benchmarks/run.py

clean: ## delete built files and caches; runs and the virtual environment stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .mutants
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
