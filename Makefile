# Two commands are the whole set-up: `make demo` and `make test`. Each creates .venv from requirements.lock first.
.PHONY: demo test slow lint format lock docs clean

PYTHON ?= python3
BIN := .venv/bin
# The environment is whole when this file is there; it is made again when the lock or the project's metadata changes.
ENV := .venv/installed

demo: $(ENV)
	$(BIN)/decant run

test: $(ENV)
	$(BIN)/python -m pytest -n 3 --dist loadfile

# What `test` leaves out: tests that train for long.
slow: $(ENV)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(ENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(ENV)
	$(BIN)/python docs/parameters.py > docs/parameters.md
	$(BIN)/python -m benchmarks --render

# Writes requirements.lock anew from pyproject.toml, for every platform and Python from 3.11 on.
lock: $(ENV)
	$(BIN)/uv pip compile pyproject.toml --extra pipeline --extra dev --extra peers --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --upgrade -o requirements.lock

# Removes what the pipeline made (stages, cache), not the environment and not your inputs.
clean:
	rm -rf .dvc/cache .dvc/tmp $(filter-out data/inputs/,$(wildcard data/*/))

$(ENV): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
