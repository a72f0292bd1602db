# Needs only make, Python 3.11 or newer and a way to PyPI. `make` alone lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_OPTIONS := --disable-pip-version-check --no-input
PIP := $(BIN)/python -m pip $(PIP_OPTIONS)
EXAMPLES_VENV := .venv-examples
EXAMPLES_PIP := $(EXAMPLES_VENV)/bin/python -m pip $(PIP_OPTIONS)
ARGS ?=

PACKAGES := chroma_router router shard_node
TYPED := $(PACKAGES) $(wildcard tests) tools

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment ---------------------------------------------------------------------------------

.PHONY: venv
venv: $(VENV)/.project-stamp ## make .venv from requirements.lock (PYTHON=python3 chooses the interpreter)

$(VENV)/.lock-stamp: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: say make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.project-stamp: $(VENV)/.lock-stamp pyproject.toml
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The examples need frameworks that the project itself does not: they have an environment of their own.
$(EXAMPLES_VENV)/.lock-stamp: examples/requirements.lock | $(VENV)/.lock-stamp
	$(PYTHON) -m venv $(EXAMPLES_VENV)
	$(EXAMPLES_PIP) install --quiet --no-compile --require-hashes -r examples/requirements.lock
	@touch $@

$(EXAMPLES_VENV)/.project-stamp: $(EXAMPLES_VENV)/.lock-stamp pyproject.toml
	$(EXAMPLES_PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Writes the lock $(2) of the requirements $(1): with hashes, and without a place of this machine.
define compile
	.lock-venv/bin/uv pip compile $(1) --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --quiet --output-file $(2) $(ARGS)
	@sed -e "s/ ; python_full_version < '3.15' and (sys_platform == 'darwin' or sys_platform == 'linux') / /" \
		-e "s/ ; python_full_version < '3.15' and / ; /" $(2) > $(2).tmp
	@mv $(2).tmp $(2)
	@! grep -nE '://|^-|file:' $(2) || { echo "$(2) names a place of this machine" >&2; exit 1; }
endef

.PHONY: lock
lock: ## resolve the dependencies anew into the lock files (ARGS=--upgrade takes newer versions)
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip --disable-pip-version-check install --quiet uv
	$(call compile,pyproject.toml --group dev,requirements.lock)
	$(call compile,pyproject.toml examples/requirements.in --constraints requirements.lock,examples/requirements.lock)
	rm -rf .lock-venv

# --- checks --------------------------------------------------------------------------------------

.PHONY: check
check: lint types imports proto-lint proto-breaking proto-check reference-check ## all static checks: what CI runs before the tests

.PHONY: lint
lint: venv ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: venv ## mypy --strict
	$(BIN)/mypy $(TYPED)

.PHONY: imports
imports: venv ## import-linter: who may import whom
	$(BIN)/lint-imports --no-logo

.PHONY: proto-lint
proto-lint: venv ## buf: lint and format of the contract
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

.PHONY: proto-breaking
proto-breaking: venv ## buf: no breaking change of the contract (ARGS=commit chooses what to compare with)
	$(BIN)/python tools/proto_breaking.py $(ARGS)

.PHONY: proto-check
proto-check: venv ## the generated code agrees with proto/
	$(BIN)/python tools/gen_proto.py --check

.PHONY: reference-check
reference-check: venv ## docs/REFERENCE.md agrees with proto/
	$(BIN)/python -m tools.gen_reference --check

.PHONY: fmt
fmt: venv ## format Python and the contract, mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write

# --- tests ---------------------------------------------------------------------------------------

# A file's tests stay together in one of the processes, which share nothing.
WORKERS ?= 2

.PHONY: test
test: venv ## all tests, in WORKERS=2 processes (ARGS="-k name" and the like are handed to pytest)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

.PHONY: test-unit
test-unit: venv ## the tests that start no process or server
	$(BIN)/python -m pytest -m "not integration" $(ARGS)

.PHONY: conformance
conformance: venv ## Chroma's own tests on a cluster (ARGS="--shards 5 core", property, all; -- pytest args)
	$(BIN)/python -m tests.conformance $(ARGS)

.PHONY: conformance-smoke
conformance-smoke: venv ## a minute of them: on 3, 1 and 5 shards, and placed on one
	$(BIN)/python -m tests.conformance smoke

FUZZ_SECONDS ?= 60
FUZZ_SEED ?= new

.PHONY: fuzz
fuzz: venv ## hostile messages to every call of a running cluster (FUZZ_SECONDS=60 FUZZ_SEED=new)
	FUZZ_SECONDS=$(FUZZ_SECONDS) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -s tests/fuzz $(ARGS)

.PHONY: model-test
model-test: venv ## 5,000 random operations on a cluster and on one Chroma must answer alike (ARGS="--seed 7 --shards 5")
	$(BIN)/python -m tests.model.run $(ARGS)

SEEDS ?= 100000

.PHONY: sim
sim: venv ## moves under faults, simulated (SEEDS=100000 WORKERS=2; ARGS="--first 7", "--seed 7" prints one)
	$(BIN)/python -m tests.sim.run --seeds $(SEEDS) --workers $(WORKERS) $(ARGS)

# --- work ----------------------------------------------------------------------------------------

.PHONY: demo
demo: venv ## three shards, real documents, a few questions; no download
	$(BIN)/chroma-router demo $(ARGS)

.PHONY: examples
examples: venv $(EXAMPLES_VENV)/.project-stamp ## run examples/ against a fresh cluster (ARGS="haystack_store node" chooses some)
	$(BIN)/python -m tools.run_examples --python $(EXAMPLES_VENV)/bin/python $(ARGS)

.PHONY: proto
proto: venv ## generate chroma_router/v1 from proto/
	$(BIN)/python tools/gen_proto.py

.PHONY: reference
reference: venv ## write docs/REFERENCE.md from the comments of proto/
	$(BIN)/python -m tools.gen_reference

.PHONY: clean
clean: ## remove the environments, caches and build results
	rm -rf $(VENV) $(EXAMPLES_VENV) examples/node/node_modules .lock-venv *.lock.tmp examples/*.lock.tmp build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
