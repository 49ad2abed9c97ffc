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
# further options of `wsvad extract`, e.g. EXTRACT="--weights random --crops 5 --precision bfloat16"
EXTRACT  ?=
# ALLOW_MISSING=1 goes on without the videos that failed; they are listed beside every number
ALLOW    := $(if $(ALLOW_MISSING),--allow-missing,)
GO_ON    := $(if $(ALLOW_MISSING),test $$? = 1,{ code=$$?; echo "to go on without them: make ... ALLOW_MISSING=1" >&2; exit $$code; })

MANIFEST := $(OUT)/$(DATASET).csv
STORE    := $(OUT)/features/$(DATASET)/$(BACKBONE)
RUN      := $(OUT)/runs/$(DATASET)-$(BACKBONE)-$(RECIPE)-s$(SEED)

.PHONY: help demo test lint format index same-root features train evaluate bench clean

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
	$(WSVAD) index $(DATASET) --root "$(ROOT)" -o "$(MANIFEST)" || $(GO_ON)
	@echo "$(ROOT)" > "$(MANIFEST).root"

# a manifest of another ROOT under the same OUT would be used in silence
same-root: $(MANIFEST)
	@test -z "$(ROOT)" -o "$$(cat "$(MANIFEST).root" 2>/dev/null)" = "$(ROOT)" || { \
	echo "$(MANIFEST) was made from ROOT=$$(cat "$(MANIFEST).root" 2>/dev/null), not $(ROOT); use another OUT, or delete it" >&2; exit 2; }

index: same-root ## videos of DATASET below ROOT -> OUT/DATASET.csv

features: $(VENV)/.installed same-root ## what is missing of BACKBONE's features -> OUT/features
	$(WSVAD) extract "$(MANIFEST)" --backbone $(BACKBONE) --out "$(STORE)" --workers $(WORKERS) $(EXTRACT) || $(GO_ON)

train: features ## RECIPE (or HEAD) with SEED -> OUT/runs; goes on where it was interrupted
	@if grep -qs '"state": "done"' "$(RUN)/status.json"; then echo "trained already: $(RUN)"; \
	elif [ -f "$(RUN)/config.yaml" ]; then $(WSVAD) train $(RECIPE) --out "$(RUN)" --resume; \
	else $(WSVAD) train $(RECIPE) --manifest "$(MANIFEST)" --features "$(STORE)" --seed $(SEED) --out "$(RUN)" $(ALLOW); fi

evaluate: train ## frame-level numbers of that run
	$(WSVAD) eval "$(RUN)" $(ALLOW)

# -- development --------------------------------------------------------------------------------------------------------

# a process per core, each with one thread: several threads in each would only get in each other's way
TESTERS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 8))')

test: $(VENV)/.installed ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal

lint: $(VENV)/.installed ## ruff and mypy, both strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## ruff puts the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed ## extraction, import, training, evaluation, metrics, measured on this machine
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/importing.py
	$(BIN)/python benchmarks/nets.py
	$(BIN)/python benchmarks/published_extractors.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/evaluation.py

clean: ## the demo, builds and caches; not features, runs or the environment
	rm -rf "$(OUT)/demo" build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
