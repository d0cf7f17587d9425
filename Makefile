# One verb for each thing a person does. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON := .venv/bin/python

# Seed of the starting weights, crops and mirrors.
SEED ?= 1
# HOLDOUT=1: the demo on a tenth of its training classes held out, where its choices were made.
HOLDOUT ?=
# Another name for the run's folder.
RUN ?= seed$(SEED)
# Another length of training than the solver's.
ITERS ?=
# A Debian archive to fetch Caffe's source from, instead of the machine's own.
MIRROR ?=

SET := demo$(if $(filter 1,$(HOLDOUT)),_holdout)
DEMO := runs/$(SET)/lifted_64
DEMO_RUN := $(DEMO)/$(RUN)
DEMO_NET := prototxt/demo/lifted_64

.PHONY: help env check test lint prototxt data-demo train-demo demo

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r verb text; do printf '  make %-14s %s\n' "$$verb" "$$text"; done

env: ## build Caffe into .caffe/ and the Python environment into .venv/
	@tools/env.sh $(if $(MIRROR),--mirror $(MIRROR)) $(if $(filter-out env,$(MAKECMDGOALS)),--quiet)

check: ## say what a bug report needs, and what is wrong
	@test -x $(PYTHON) || { echo "there is no .venv here: make env"; exit 1; }
	@PYTHONPATH=. $(PYTHON) tools/check.py

test: env ## all tests, and ruff
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pytest -q tests

lint: env ## ruff, mending what it can
	@$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format .

prototxt: env ## write the committed nets and solvers again from their definition
	@$(PYTHON) prototxt/generate.py

data-demo: env ## fetch the demo's images and make their LMDBs and batch plan
	@$(PYTHON) data_prep/demo_images.py
	@$(PYTHON) data_prep/build_set.py --images data/demo/images --groups data/demo/groups.csv --size 64 --out data/$(SET) $(if $(filter 1,$(HOLDOUT)),--holdout 0.1)
	@mkdir -p $(DEMO)/caffe # stock `caffe train` aborts when the folder of its snapshots is missing

# The demo's matrices are small: with two threads OpenBLAS takes half as long again as with one.
ONE_THREAD := OPENBLAS_NUM_THREADS=1

train-demo: data-demo ## train the demo's embedding [SEED=1] [ITERS=] [RUN=name]
	@$(ONE_THREAD) $(PYTHON) tools/train.py --solver $(DEMO_NET)/solver.prototxt --set data/$(SET) --run $(DEMO_RUN) --seed $(SEED) $(if $(ITERS),--iterations $(ITERS))

demo: train-demo ## the whole job on the demo's images: train, extract, score, compare, draw
	@$(MAKE) --no-print-directory $(DEMO_RUN)/retrieval.png
	@$(PYTHON) tools/compare.py --metrics $(DEMO_RUN)/metrics.json --out $(DEMO_RUN)/report.md
	@echo "picture: $(DEMO_RUN)/retrieval.png    numbers: $(DEMO_RUN)/metrics.json    training: $(DEMO_RUN)/log.csv"

runs/$(SET)/raw_pixels.npz: data/$(SET)/set.json
	@$(PYTHON) tools/extract.py --set data/$(SET) --pixels 16 --out $@

$(DEMO_RUN)/features.npz: $(DEMO_RUN)/model.caffemodel $(DEMO_NET)/deploy.prototxt data/$(SET)/set.json
	@$(PYTHON) tools/extract.py --set data/$(SET) --net $(DEMO_NET)/deploy.prototxt --weights $< --out $@

$(DEMO_RUN)/features_untrained.npz: $(DEMO_RUN)/model.caffemodel $(DEMO_NET)/deploy.prototxt data/$(SET)/set.json
	@$(PYTHON) tools/extract.py --set data/$(SET) --net $(DEMO_NET)/deploy.prototxt --weights $(DEMO_RUN)/snapshot_iter_0.caffemodel --out $@

$(DEMO_RUN)/metrics.json: $(DEMO_RUN)/features.npz $(DEMO_RUN)/features_untrained.npz runs/$(SET)/raw_pixels.npz
	@$(PYTHON) tools/evaluate.py --features $< --out $@ --baseline raw_pixels=runs/$(SET)/raw_pixels.npz --baseline untrained=$(DEMO_RUN)/features_untrained.npz

$(DEMO_RUN)/retrieval.png: $(DEMO_RUN)/features.npz $(DEMO_RUN)/metrics.json
	@$(PYTHON) tools/figures.py --set data/$(SET) --features $< --out $@
