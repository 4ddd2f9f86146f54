# make demo        a small Emu3 with the AIA loss on four CPU processes, with figures
# make test        style, types and the tests of a few minutes; CPU only
# make test-all    every test that this machine can run
#
# PYTHON chooses the interpreter of the virtual environment (3.10 or newer). Everything is installed
# by pip, whose environment variables choose another index or another build of torch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := demo_output

.PHONY: install demo lint test test-all clean

install: $(INSTALLED)

# The stamp file is newer than the files that decide what is installed, or they are installed again.
$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[demo,hf,dev]' --constraint constraints.txt
	touch $@

$(DEMO)/data/dataset.json: $(INSTALLED)
	rm -rf $(DEMO)/data
	$(BIN)/python tools/build_shards.py --demo --output $(DEMO)/data

demo: $(DEMO)/data/dataset.json
	rm -rf $(DEMO)/run
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 4 \
		examples/pretrain_emu3_aia.sh --preset emu3_demo --data-path $(DEMO)/data \
		--save $(DEMO)/run --tensorboard-dir $(DEMO)/run/tensorboard
	$(BIN)/python tools/demo_report.py \
		--run $(DEMO)/run --data $(DEMO)/data --output $(DEMO)/figures
	@echo "data:        $(DEMO)/data"
	@echo "checkpoint:  $(DEMO)/run"
	@echo "curves:      $(BIN)/tensorboard --logdir $(DEMO)/run/tensorboard"
	@echo "figures:     $(DEMO)/figures"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow and not gpu"

test-all: lint
	$(BIN)/pytest

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
