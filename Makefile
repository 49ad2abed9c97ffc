# Everything a user or a developer types. `make demo` and `make test` set themselves up on a machine with python3 and make.
#
#   make features train evaluate DATASET=xd_violence ROOT=/data/xd BACKBONE=motion RECIPE=motion_ranking OUT=work SEED=0

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WSVAD  := $(BIN)/wsvad

DATASET  ?= toy
BACKBONE ?= motion
HEAD     ?= ranking
RECIPE   ?= motion_$(HEAD)
OUT      ?= work
ROOT     ?= $(if $(filter toy,$(DATASET)),$(OUT)/toy,)
SEED     ?= 0
WORKERS  ?= 0

MANIFEST := $(OUT)/$(DATASET).csv
STORE    := $(OUT)/features/$(DATASET)/$(BACKBONE)
RUN      := $(OUT)/runs/$(DATASET)-$(BACKBONE)-$(RECIPE)-s$(SEED)

.PHONY: help demo test lint format index features train evaluate bench clean

help:
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

# -- set-up: once, then only when the requirements change ---------------------------------------------------------------

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# -- the product --------------------------------------------------------------------------------------------------------

demo: $(VENV)/.installed ## generated videos -> features -> training -> numbers -> picture, offline
	$(WSVAD) demo --out $(OUT)/demo

$(MANIFEST): | $(VENV)/.installed
	@test -n "$(ROOT)" || { echo "ROOT=DIR names the folder of the videos of $(DATASET)" >&2; exit 2; }
	$(WSVAD) index $(DATASET) --root "$(ROOT)" -o "$(MANIFEST)"

index: $(MANIFEST) ## videos of DATASET below ROOT -> OUT/DATASET.csv

features: $(VENV)/.installed $(MANIFEST) ## what is missing of BACKBONE's features -> OUT/features
	$(WSVAD) extract "$(MANIFEST)" --backbone $(BACKBONE) --out "$(STORE)" --workers $(WORKERS)

train: features ## RECIPE (or HEAD) with SEED -> OUT/runs; goes on where it was interrupted
	@if [ -f "$(RUN)/checkpoints/last.json" ]; then echo "trained already: $(RUN)"; \
	elif [ -f "$(RUN)/config.yaml" ]; then $(WSVAD) train $(RECIPE) --out "$(RUN)" --resume; \
	else $(WSVAD) train $(RECIPE) --manifest "$(MANIFEST)" --features "$(STORE)" --seed $(SEED) --out "$(RUN)"; fi

evaluate: train ## frame-level numbers of that run
	$(WSVAD) eval "$(RUN)"

# -- development --------------------------------------------------------------------------------------------------------

test: $(VENV)/.installed ## all tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed ## ruff and mypy, both strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## ruff puts the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## the measurements of the README, on this machine
	$(BIN)/python benchmarks/extraction.py

clean: ## what the targets above made; not the environment
	rm -rf "$(OUT)" build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
