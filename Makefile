# `make demo` and `make test` need nothing before them but Python 3.11, git and make.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# A build without CUDA, by name, so that a machine without a GPU never downloads one by accident.
# With a GPU: make setup TORCH=2.13.0+cu130 TORCH_INDEX=https://download.pytorch.org/whl/cu130
ifeq ($(shell uname -s),Darwin)
TORCH  ?= 2.13.0
else
TORCH  ?= 2.13.0+cpu
endif
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-docs lint unit soak soak-train soak-chain test-ray check-plan docs wheel audit lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedsea needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version) and torch $(TORCH)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Where the configured indexes have this very build, no other index is asked.
	@$(BIN)/python -c 'import torch, sys; sys.exit(torch.__version__ != "$(TORCH)")' 2>/dev/null || \
		$(BIN)/pip install torch==$(TORCH) 2>/dev/null || \
		$(BIN)/pip install torch==$(TORCH) --extra-index-url $(TORCH_INDEX)
	$(BIN)/pip install --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY)
	@$(BIN)/fedsea demo --config configs/demo.yaml

test: lint unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	@# Much of a test of processes is waiting for them: three at a time keep two cores busy.
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

# Half an hour: every command that the documentation shows, page by page; the examples; the wheel, installed.
test-docs: $(READY)
	$(BIN)/python -m pytest -m slow tests/docs tests/deploy tests/packaging tests/integration/test_examples.py

# The documentation as a site, in build/site.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What is published, in dist.
wheel: $(READY)
	$(BIN)/python -m build --no-isolation --outdir dist

# An hour at four fifths of what this machine takes: memory and open files of every process.
soak: $(READY)
	$(BIN)/fedsea soak --minutes 60

# Minutes: twenty processes of a training run killed at random, by each strategy.
soak-train: $(READY)
	$(BIN)/python -m pytest -m slow --capture no tests/chaos/test_training_kills.py

# Minutes: each stage of a chain of three killed in the middle of prompts and of answers.
soak-chain: $(READY)
	$(BIN)/python -m pytest -m slow tests/chaos/test_chain_kills.py

# Minutes: a Ray cluster of four machines that are all this one, one of which is lost under load.
test-ray: $(READY)
	$(BIN)/python -m pytest -m slow --capture no tests/chaos/test_ray.py

# Minutes: this machine's speed, and predictions against real systems on it.
check-plan: $(READY)
	$(BIN)/python -m pytest -m slow tests/integration/test_plan.py

# Known weaknesses of the locked packages, as PyPI lists them.
audit: $(READY)
	@$(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

# The versions that are installed now become the locked ones; the hashes are those on PyPI.
lock: $(READY)
	@$(PYTHON) -m venv $(VENV)/lock
	@$(VENV)/lock/bin/pip install --quiet uv
	@$(BIN)/pip list --format=freeze | grep -viE '^(torch|fedsea[_-]mq|pip)==' > $(VENV)/lock/installed
	@$(VENV)/lock/bin/uv pip compile --quiet --no-deps --generate-hashes --universal \
		--python-version 3.11.5 --index-url https://pypi.org/simple --no-annotate --no-header \
		--output-file $(VENV)/lock/hashed $(VENV)/lock/installed > /dev/null
	@{ sed -n '/^#/p' requirements.lock; cat $(VENV)/lock/hashed; } > requirements.new
	@mv requirements.new requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
