# The first target is help. Every target that needs the virtual environment makes it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.ready-bench
TEACHER_READY := $(VENV)/.ready-teacher
WHAT := stream models tests bench

.PHONY: help setup teacher demo test check bench soak format lock

help:  ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything heft needs; .venv/bin/heft is the command

teacher: $(TEACHER_READY)  ## add what the teacher needs: torch and its libraries

demo: $(TEACHER_READY)  ## a simulated shop, a broker, a worker and its teacher; five minutes, Ctrl-C ends it
	@$(BIN)/heft demo

test: $(READY)  ## run the tests
	@$(BIN)/python -m pytest $(ARGS)

check: $(READY)  ## format, lint, types, import contracts, tests
	$(BIN)/ruff format --check $(WHAT)
	$(BIN)/ruff check $(WHAT)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(ARGS)

bench: $(BENCH_READY)  ## compare with peers: ratios measured alternately in one run
	@$(BIN)/python -m bench $(ARGS)

soak: $(READY)  ## workers stopped, killed, without broker, store or disk, under traffic, on Apache Kafka; ARGS=--quick
	@$(BIN)/python -m bench.soak $(ARGS)

format: $(READY)  ## format the code and mend what ruff can mend
	$(BIN)/ruff format $(WHAT)
	$(BIN)/ruff check --fix $(WHAT)

lock: $(READY)  ## pin the newest versions that pyproject.toml allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 --upgrade \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --output-file requirements.lock

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "heft needs Python 3.11 or newer, this is " \
		+ sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 " + "setup")'
	$(PYTHON) -m venv $(VENV)

# The lock constrains what pip chooses; where packages come from is the user's own pip configuration.
$(READY): pyproject.toml requirements.lock | $(BIN)/python
	@echo "Installing heft into $(VENV) (a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

$(BENCH_READY): $(READY)
	@echo "Installing the peers to compare with ..."
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,bench]'
	@touch $@

$(TEACHER_READY): $(READY)
	@echo "Installing the teacher's libraries (some minutes, some gigabytes; $(BIN)/heft demo does without them) ..."
	@$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev,teacher]'
	@touch $@
