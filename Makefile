# One verb for each thing a person does; `make help` lists them. tools/verbs.py says which variables a verb takes,
# tools/experiment.py what it does.
.DEFAULT_GOAL := help
.NOTPARALLEL: # -j is for the cells of a sweep
MAKEOVERRIDES :=
override PYTHON := .venv/bin/python

# A variable counts where it is typed behind `make`, and its text is nobody's program: make takes it as it stands, and a shell
# sees it in the environment alone.
override GIVEN := $(sort $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))
override WORDS = $(foreach name,$(GIVEN),$(name)="$$$(name)")
override option = $(if $(filter $(1),$(GIVEN)),--$(2) "$$$(1)")
override DO = $(PYTHON) tools/experiment.py $@ $(WORDS)

PAPER := cub cars196 sop
VERBS := data-demo train-demo demo demo-all train weights $(foreach verb,data train report compare reproduce,$(PAPER:%=$(verb)-%)) ablation-cub ablation-cars196
.PHONY: help typed env check test test-slurm test-gpu-build test-layers test-faults soak lint prototxt check-report figures bench bench-eval $(VERBS)

help: typed
	@awk '/^## / {print "\n" substr($$0, 4)} /^[a-z0-9-]+:.*## / {split($$0, part, /:.*## /); variables = "";  \
	  if (at = index(part[2], " [")) {variables = substr(part[2], at); part[2] = substr(part[2], 1, at - 1)} \
	  printf "  make %-17s %s\n", part[1], part[2]; if (variables) print "                       " variables}' Makefile

typed: # what is typed wrong is refused before anything is built
	@if command -v python3 >/dev/null; then python3 tools/verbs.py "$(MAKECMDGOALS)" $(WORDS); fi

$(VERBS): typed env
	@$(DO)

## Your own images
train: ## a searchable embedding of your images, with a report [DATA=folder] [NAME=shoes] [NET=] [WEIGHTS=] [SIZE=] [ITERS=] [METHOD=] [DIM=] [TEST=] [SPLIT=] [MIRRORED=no] [DUPLICATES=drop] [UNREADABLE=skip] [SEED=] [RUN=] [SAVE_MINUTES=] [KEEP=] [GPU=]

## First steps
demo: ## the whole job on 15,000 emoji drawings: train, extract, score, compare, draw [METHOD=lifted] [DIM=64] [SEED=1] [ITERS=] [RUN=name] [HOLDOUT=1]
test: env ## all tests, and ruff
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pytest -q -n $$(nproc) --maxprocesses 4 tests
env: typed ## build Caffe into .caffe/ and the Python environment into .venv/ [PYCAFFE=dir] [CAFFE_SRC=dir] [GPU=1] [CUDA_ARCH=90] [CUDNN=1] [MARCH=native] [PLAIN=1] [MIRROR=address]
	@tools/env.sh $(call option,MIRROR,mirror) $(if $(filter env,$(MAKECMDGOALS)),$(call option,PYCAFFE,pycaffe) $(call option,CAFFE_SRC,caffe-src) \
	  $(call option,GPU,gpu) $(call option,CUDA_ARCH,cuda-arch) $(call option,CUDNN,cudnn) $(call option,MARCH,march) $(call option,PLAIN,plain),--quiet)
check: typed ## say what a bug report needs, and what is wrong
	@test -x $(PYTHON) || { echo "there is no .venv here: make env"; exit 1; }
	@$(PYTHON) tools/check.py

## The paper's experiments
train-cub: ## CUB-200-2011: data, training, scores beside the published ones [METHOD=lifted] [DIM=64] [SEED=1] [RECIPE=authors] [BATCH=] [ITERS=] [RUN=] [ARCHIVE=] [WEIGHTS=] [GPU=]
train-cars196: ## the same for Cars196
train-sop: ## the same for Stanford Online Products
data-cub: ## the data alone: fetch CUB-200-2011, make its LMDBs and batch plan [ARCHIVE=] [RESIZE=] [COUNTS=any] [UNREADABLE=skip] [LAYOUT=paired] [BATCH=]
data-cars196: ## the same for Cars196
data-sop: ## the same for Stanford Online Products
weights: ## fetch BVLC GoogLeNet's weights, where the paper's nets start [WEIGHTS=path]
report-cub: ## a run on CUB as one page: table, curves, retrieved images, map, recipe [METHOD=] [DIM=64] [SEED=1] [RUN=] [BATCH=] [RECIPE=]
report-cars196: ## the same for Cars196
report-sop: ## the same for Stanford Online Products

## Baselines and sweeps
reproduce-cub: ## every method and size on CUB, then the tables and curves of all [METHODS=] [DIMS=] [SEEDS=1,2,3] [BATCH=] [-j 4] [ENGINE=slurm]
reproduce-cars196: ## the same for Cars196
reproduce-sop: ## the same for Stanford Online Products
ablation-cub: ## the lifted loss on CUB with 32, 48, 64 and 128 images a batch [BATCHES=] [DIM=64] [SEEDS=1]
ablation-cars196: ## the same for Cars196
compare-cub: ## all finished runs on CUB beside the published numbers, seeds in one row
compare-cars196: ## the same for Cars196
compare-sop: ## the same for Stanford Online Products
demo-all: ## lifted, contrastive and triplet loss on the demo, three seeds each [METHODS=] [DIMS=] [SEEDS=] [-j 2]
data-demo: ## fetch the demo's images and make their LMDBs and batch plan [HOLDOUT=1]
train-demo: ## train the demo's embedding alone [METHOD=lifted] [SEED=1] [ITERS=] [RUN=name]

## For those who work on this project
prototxt: env ## write the committed nets and solvers again from their definition
	@$(PYTHON) prototxt/generate.py
lint: env ## ruff, mending what it can
	@$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format .
bench: env ## speed of the loss, the data layer, the LMDBs and an iteration of GoogLeNet, as ratios against their peers
	@$(PYTHON) tests/bench.py --out runs/bench.json
bench-eval: env ## speed of retrieval and affinity propagation, as ratios against their peers
	@$(PYTHON) tools/bench_eval.py --out runs/bench_eval.json
figures: env ## the paper's figure 4, from this project's losses: runs/figures/gradients.png
	@$(PYTHON) tools/gradient_figure.py --out runs/figures/gradients.png
check-report: env ## open a report in Chromium, narrow and wide; fail where a reader would see something broken [REPORT=file]
	@$(PYTHON) tools/check_report.py $(if $(filter REPORT,$(GIVEN)),"$$REPORT",runs/demo/lifted_64/seed1/report.html) --shots runs/figures
test-slurm: env ## a sweep on a real Slurm of this machine alone (as root; apt: slurm-wlm munge), about 7 minutes
	@$(PYTHON) -m pytest -q tests/check_slurm.py
test-faults: env ## kill -9 at every rename and at random moments, failing and full disks; about an hour, as root
	@$(PYTHON) -m pytest -q tests/check_faults.py
soak: data-demo ## an hour of training killed every few minutes, beside one undisturbed: memory, threads, files, equal weights [MINUTES=60]
	@$(PYTHON) tests/soak.py $(call option,MINUTES,minutes)
test-gpu-build: env ## a build with CUDA in a scratch folder: it links, imports and computes [CUDA_ARCH=90] [CUDNN=1] [SCRATCH=folder]
	@$(PYTHON) -m pytest -q -rs tests/check_gpu_build.py
test-layers: env ## BVLC's own tests of Caffe's layers, and weights equal to the bit between a plain build and faster ones [SCRATCH=folder]
	@$(PYTHON) -m pytest -q -s -rs tests/check_layers.py
