# Each target sets itself up from a bare clone: a virtual environment in .venv, the dependencies, the extension.
PYTHON ?= python3
VENV ?= .venv
# The DALI package that matches the driver; on a machine without a GPU either one works.
CUDA ?= $(shell nvidia-smi 2>/dev/null | grep -q 'CUDA Version: 12' && echo cuda12 || echo cuda13)
BIN := $(VENV)/bin
# Named after what is built, so that other settings build again.
READY := $(VENV)/.ready-$(CUDA)-$(or $(FASTFEED_CUDA),auto)-$(or $(FASTFEED_CUDA_ARCH),all-major)

.PHONY: demo test lint bench gpu clean

demo: $(READY)
	$(BIN)/fastfeed demo

# In two processes, each with the next test that nobody has: half the time.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Ratios to what each replaces; the first run saves them, and later ones are compared with the run before.
bench: $(READY)
	$(BIN)/python -m pytest benchmarks/host -q --benchmark-autosave --benchmark-compare \
		--benchmark-columns=median,iqr,rounds

# On a machine with an NVIDIA GPU, in a Python that has PyTorch; needs no network, and ends within nine minutes.
gpu:
	$(PYTHON) -m benchmarks.gpu

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rebuilt when what it is made from changes; Python files need no rebuild, the install is editable.
$(READY): pyproject.toml constraints.txt setup.py fastfeed/_version.py $(wildcard csrc/*) | $(VENV)/.made
	@echo "Installing dependencies and building the extension in $(VENV): a few minutes the first time"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(CUDA),test,bench]"
	rm -f $(VENV)/.ready*
	touch $@

# mypy reads PyTorch's types, so linting needs the same packages.
$(VENV)/.lint: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt ruff mypy
	touch $@

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info fastfeed/*.so
