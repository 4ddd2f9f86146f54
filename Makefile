# make demo        a small Emu3 with the AIA loss on four CPU processes, with figures, and another
#                  that is trained to the intensities that were measured on the first
# make demo-janus  the same with a small Janus-Pro, which ends by drawing a photograph from memory
# make demo-unifork  a small UniFork that draws a photograph from memory and says what it shows
# make check       style, types and the unit tests, between two edits
# make test        style, types and the tests of a few minutes; CPU only
# make test-newest the tests that depend on megatron-core, on the newest one, under Python 3.12
# make test-all    every test that this machine can run; lmms-eval gets an environment of its own
# make gpu         the tests that need a GPU, and what AIA costs there: attention and whole steps
#
# PYTHON chooses the interpreter of the virtual environment (3.10 to 3.13), PYTHON3_12
# that of the second one, where no python3.12 is found. Everything is installed
# by pip, whose environment variables choose another index or another build of torch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEWEST := .venv-newest
NEWEST_INSTALLED := $(NEWEST)/.installed
PYTHON3_12 ?=
LMMS_EVAL := .venv-lmms-eval
LMMS_EVAL_INSTALLED := $(LMMS_EVAL)/.installed
LMMS_EVAL_PLUGIN := tools/lmms_eval_plugin
DEMO := demo_output

# A process a core, and not more than there are long files. A file stays in one process: what its
# tests share is made once. Long files come first, as they are collected first.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/pytest $(PARALLEL)
LINT := $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.PHONY: install demo demo-janus demo-unifork lint check test test-newest test-all gpu clean

install: $(INSTALLED)

# The stamp file is newer than the files that decide what is installed, or they are installed again.
$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11), (3, 12), (3, 13)) \
		and 'Python 3.10 to 3.13 is needed: make PYTHON=/path/to/python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[demo,hf,formats,dev]' --constraint constraints.txt
	touch $@

$(DEMO)/data/dataset.json: $(INSTALLED)
	rm -rf $(DEMO)/data
	$(BIN)/python tools/build_shards.py --demo --output $(DEMO)/data

# Name and checkpoint of a model of the demo.
define measure_demo
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 tools/measure_intensity.py \
		--load $(2) --name $(1) --data-path $(DEMO)/data --samples 40 --output $(DEMO)/measured/$(1)
endef

# Train and draw; then measure that model, fit a profile to it, train another to it, measure again.
demo: $(DEMO)/data/dataset.json
	rm -rf $(DEMO)/run $(DEMO)/pictures $(DEMO)/measured $(DEMO)/student
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 4 \
		examples/pretrain_emu3_aia.sh --preset emu3_demo --data-path $(DEMO)/data \
		--save $(DEMO)/run --tensorboard-dir $(DEMO)/run/tensorboard
	$(BIN)/python tools/demo_report.py \
		--run $(DEMO)/run --data $(DEMO)/data --output $(DEMO)/figures
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 tools/generate.py \
		--load $(DEMO)/run --prompt "a tall Chinese pagoda above a lake" --num-images 4 \
		--image-area 16384 --prompt-suffix "" --negative-prompt "" --top-k 20 \
		--output $(DEMO)/pictures
	$(call measure_demo,teacher,$(DEMO)/run)
	$(BIN)/python tools/fit_profile.py --intensity $(DEMO)/measured/teacher \
		--output $(DEMO)/measured/profile.yaml
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 \
		examples/pretrain_emu3_aia.sh --preset emu3_demo --data-path $(DEMO)/data --seed 7 \
		--aia-profile $(DEMO)/measured/profile.yaml --train-iters 60 --save $(DEMO)/student
	$(call measure_demo,student,$(DEMO)/student)
	$(BIN)/python tools/compare_intensity.py $(DEMO)/measured/teacher $(DEMO)/measured/student \
		--overlay --by-layer --profile $(DEMO)/measured/profile.yaml \
		--output $(DEMO)/measured/figures
	@echo "data:        $(DEMO)/data"
	@echo "checkpoint:  $(DEMO)/run"
	@echo "curves:      $(BIN)/tensorboard --logdir $(DEMO)/run/tensorboard"
	@echo "figures:     $(DEMO)/figures"
	@echo "drawn:       $(DEMO)/pictures/contact_sheet.png"
	@echo "measured:    $(DEMO)/measured/figures/curves.png"

$(DEMO)/janus/data/dataset.json: $(INSTALLED)
	rm -rf $(DEMO)/janus/data
	$(BIN)/python tools/build_shards.py --demo --model janus_pro --output $(DEMO)/janus/data

demo-janus: $(DEMO)/janus/data/dataset.json
	rm -rf $(DEMO)/janus/run $(DEMO)/janus/pictures
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 4 \
		examples/posttrain_janus_pro_aia.sh --preset janus_demo --data-path $(DEMO)/janus/data \
		--save $(DEMO)/janus/run --tensorboard-dir $(DEMO)/janus/run/tensorboard
	$(BIN)/python tools/demo_report.py --run $(DEMO)/janus/run --data $(DEMO)/janus/data \
		--output $(DEMO)/janus/figures
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 tools/generate.py \
		--load $(DEMO)/janus/run --prompt "a tall Chinese pagoda above a lake" --num-images 4 \
		--guidance-scale 2 --temperature 0.5 --output $(DEMO)/janus/pictures
	@echo "checkpoint:  $(DEMO)/janus/run"
	@echo "curves:      $(BIN)/tensorboard --logdir $(DEMO)/janus/run/tensorboard"
	@echo "figures:     $(DEMO)/janus/figures"
	@echo "drawn:       $(DEMO)/janus/pictures/contact_sheet.png"

$(DEMO)/unifork/data/dataset.json: $(INSTALLED)
	rm -rf $(DEMO)/unifork/data
	$(BIN)/python tools/build_shards.py --demo --model unifork --output $(DEMO)/unifork/data

# Train both branches; then draw along one, and ask the other what was drawn.
demo-unifork: $(DEMO)/unifork/data/dataset.json
	rm -rf $(DEMO)/unifork/run $(DEMO)/unifork/pictures
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 4 \
		examples/pretrain_unifork.sh --preset unifork_demo --data-path $(DEMO)/unifork/data \
		--save $(DEMO)/unifork/run --tensorboard-dir $(DEMO)/unifork/run/tensorboard
	$(BIN)/python tools/demo_report.py --run $(DEMO)/unifork/run --data $(DEMO)/unifork/data \
		--output $(DEMO)/unifork/figures
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 tools/generate.py \
		--load $(DEMO)/unifork/run --prompt "a tall Chinese pagoda above a lake" --num-images 4 \
		--guidance-scale 2 --temperature 0.5 --output $(DEMO)/unifork/pictures
	echo "What building is this?" | $(BIN)/python tools/chat.py --load $(DEMO)/unifork/run \
		--temperature 0 --image $(DEMO)/unifork/pictures/pictures/00000-00.png
	@echo "checkpoint:  $(DEMO)/unifork/run"
	@echo "curves:      $(BIN)/tensorboard --logdir $(DEMO)/unifork/run/tensorboard"
	@echo "figures:     $(DEMO)/unifork/figures"
	@echo "drawn:       $(DEMO)/unifork/pictures/contact_sheet.png"

lint: $(INSTALLED)
	$(LINT)

# Style and types run beside the tests and are shown below them; each can fail the target.
define with_lint
	@log=$$(mktemp); { $(LINT); } >$$log 2>&1 & lint=$$!; \
	$(1); tests=$$?; \
	wait $$lint; lint=$$?; cat $$log; rm -f $$log; exit $$((tests || lint))
endef

check: $(INSTALLED)
	$(call with_lint,$(PYTEST) -m "not slow" tests/unit)

test: $(INSTALLED)
	$(call with_lint,$(PYTEST) -m "not slow and not gpu")

# pyenv's python3.12 may be a stand-in that only says where the real one is.
$(NEWEST_INSTALLED): setup.py constraints-newest.txt
	@for python in $(PYTHON3_12) python3.12 $(PYTHON) "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12.*/bin/python3.12; do \
		$$python -c "import sys; sys.exit(sys.version_info[:2] != (3, 12))" 2>/dev/null || continue; \
		echo "$$python -m venv $(NEWEST)"; exec $$python -m venv $(NEWEST); \
	done; \
	echo "no Python 3.12: megatron-core 0.17 and newer were NOT tested;" \
		"install one, or make test-newest PYTHON3_12=/path/to/python3.12" >&2; exit 1
	$(NEWEST)/bin/python -m pip install --editable '.[demo,hf,formats,dev]' --constraint constraints-newest.txt
	touch $@

# OTHER_PYTHON: what the losses and checkpoints of the newest versions are compared with.
test-newest: $(INSTALLED) $(NEWEST_INSTALLED)
	OTHER_PYTHON=$(abspath $(BIN))/python \
		$(NEWEST)/bin/pytest $(PARALLEL) -m "versions and not slow and not gpu"

# Only text passes through lmms-eval here: without torchvision any build of torch will do.
$(LMMS_EVAL_INSTALLED): $(LMMS_EVAL_PLUGIN)/pyproject.toml $(LMMS_EVAL_PLUGIN)/constraints.txt
	$(PYTHON) -m venv $(LMMS_EVAL)
	$(LMMS_EVAL)/bin/python -m pip install --editable $(LMMS_EVAL_PLUGIN) \
		--constraint $(LMMS_EVAL_PLUGIN)/constraints.txt
	$(LMMS_EVAL)/bin/python -m pip uninstall --yes torchvision
	touch $@

test-all: $(INSTALLED) $(LMMS_EVAL_INSTALLED)
	$(call with_lint,$(PYTEST))

gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py --output gpu_proof.jsonl

clean:
	rm -rf $(VENV) $(NEWEST) $(LMMS_EVAL) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
