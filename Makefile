# One verb for each thing a person does. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON := .venv/bin/python

# Seed of the starting weights, crops and mirrors.
SEED ?= 1
# HOLDOUT=1: the demo on a tenth of its training classes held out, where its choices were made.
HOLDOUT ?=
# The loss: lifted, contrastive, triplet; pool5 is GoogLeNet as it was pretrained.
METHOD ?= lifted
# Another name for the run's folder.
RUN ?= $(if $(filter authors,$(RECIPE)),authors_)seed$(SEED)
# Another length of training than the solver's.
ITERS ?=
# Minutes after which a training saves a snapshot, where its solver's own interval is longer, and how many of those stay.
SAVE_MINUTES ?=
KEEP ?=
# The paper's sets: dimensions of the embedding, images a batch, and whose number of iterations (paper, authors).
DIM ?= 64
BATCH ?= $(OWN_BATCH)
RECIPE ?= paper
# Their data: files that are here already, another resizing, other counts, and the authors' LMDB layout (README, "The paper's sets").
ARCHIVE ?=
WEIGHTS ?=
RESIZE ?=
COUNTS ?=
UNREADABLE ?=
LAYOUT ?=
# A Debian archive to fetch Caffe's source from, instead of the machine's own.
MIRROR ?=
# make env only: a pycaffe that is built, or a source checkout; GPU=1, a build with CUDA, for which GPUs, and with cuDNN; the
# CPU it is compiled for, and PLAIN=1, a build without what is only faster.
PYCAFFE ?=
CAFFE_SRC ?=
CUDA_ARCH ?=
CUDNN ?=
MARCH ?=
PLAIN ?=
# Number of the GPU that trains and extracts, from 0; without one the CPU does. (`make env GPU=1` is a build with CUDA.)
GPU ?=
ON_GPU = $(if $(GPU),--gpu $(GPU))

OWN_BATCH := $(if $(filter triplet,$(METHOD)),120,128)
PLANS := $(if $(filter triplet,$(METHOD)),triplets,pairs)
SET := demo$(if $(filter 1,$(HOLDOUT)),_holdout)
DEMO := runs/$(SET)/$(METHOD)_$(DIM)
DEMO_RUN := $(DEMO)/$(RUN)
DEMO_NET := prototxt/demo/$(METHOD)_$(DIM)

# The variables that were given to make, for the command that a report shows.
GIVEN = $(strip $(foreach name,HOLDOUT METHOD DIM BATCH SEED RUN ITERS GPU RECIPE ARCHIVE WEIGHTS RESIZE COUNTS UNREADABLE,$(if $(filter command environment,$(origin $(name))),$(name)=$($(name)))))
# A variable's text as one word of a command, whatever is in it.
quoted = '$(subst ','\'',$(value $(1)))'
# Stop where a variable is given that a target would pass over in silence.
refuse = $(foreach name,$(1),$(if $(filter command,$(origin $(name))),$(error $(name)= does nothing in make $@; $(2))))
comma := ,
listed = $(subst $(comma), ,$($(1)))

PAPER := cub cars196 sop
LOSSES := lifted contrastive triplet

.PHONY: train help env check test test-slurm test-gpu-build test-layers test-faults soak bench lint prototxt data-demo train-demo demo weights figures check-report bench-eval $(PAPER:%=data-%) $(PAPER:%=train-%) $(PAPER:%=compare-%) $(PAPER:%=report-%) $(PAPER:%=reproduce-%) ablation-cub ablation-cars196 demo-all

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | while IFS=$$'\t' read -r verb text; do printf '  make %-17s %s\n' "$$verb" "$$text"; done

# Which Caffe it is to be is said to `make env` alone, which remembers it; to another target GPU= is a GPU's number.
$(if $(filter-out env test-gpu-build,$(MAKECMDGOALS)),$(foreach name,PYCAFFE CAFFE_SRC CUDA_ARCH CUDNN MARCH PLAIN $(if $(filter env,$(MAKECMDGOALS)),GPU),\
  $(if $(filter command,$(origin $(name))),$(error $(name)= chooses a Caffe, in a call of its own that is remembered: make env $(name)=$($(name))))))
chosen = $(if $(filter command,$(origin $(1))),$(2) $(call quoted,$(1)))

env: ## build Caffe into .caffe/ and the Python environment into .venv/ [PYCAFFE=dir] [CAFFE_SRC=dir] [GPU=1] [CUDA_ARCH=90] [CUDNN=1] [MARCH=native] [PLAIN=1]
	@tools/env.sh $(if $(MIRROR),--mirror $(MIRROR)) $(if $(filter-out env,$(MAKECMDGOALS)),--quiet) \
	  $(if $(filter env,$(MAKECMDGOALS)),$(call chosen,PYCAFFE,--pycaffe) $(call chosen,CAFFE_SRC,--caffe-src) $(call chosen,GPU,--gpu) \
	  $(call chosen,CUDA_ARCH,--cuda-arch) $(call chosen,CUDNN,--cudnn) $(call chosen,MARCH,--march) $(call chosen,PLAIN,--plain))
	@$(if $(filter env,$(MAKECMDGOALS)),,$(if $(GPU),$(if $(filter slurm,$(ENGINE)),,$(PYTHON) tools/device.py $(GPU))))

check: ## say what a bug report needs, and what is wrong
	@test -x $(PYTHON) || { echo "there is no .venv here: make env"; exit 1; }
	@PYTHONPATH=. $(PYTHON) tools/check.py

test: env ## all tests, and ruff
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	@$(PYTHON) -m pytest -q -n $$(nproc) --maxprocesses 4 tests

test-slurm: env ## a sweep on a real Slurm of this machine alone (as root; apt: slurm-wlm munge), about 7 minutes
	@$(PYTHON) -m pytest -q tests/check_slurm.py

test-faults: env ## kill -9 at every rename and at random moments, failing and full disks: the same command again gives the same files; about an hour, as root
	@$(PYTHON) -m pytest -q tests/check_faults.py

soak: data-demo ## an hour of training killed every few minutes, beside one undisturbed: memory, threads, files, and equal weights
	@$(PYTHON) tests/soak.py $(if $(MINUTES),--minutes $(MINUTES))

test-gpu-build: env ## a build with CUDA in a scratch folder: it links, imports and computes [CUDA_ARCH=90] [CUDNN=1] [SCRATCH=folder]
	@CUDA_ARCH=$(CUDA_ARCH) CUDNN=$(CUDNN) SCRATCH=$(SCRATCH) $(PYTHON) -m pytest -q -rs tests/check_gpu_build.py

test-layers: env ## BVLC's own tests of Caffe's layers, and weights equal to the bit between a plain build and faster ones [SCRATCH=folder]
	@SCRATCH=$(SCRATCH) $(PYTHON) -m pytest -q -s -rs tests/check_layers.py

lint: env ## ruff, mending what it can
	@$(PYTHON) -m ruff check --fix . && $(PYTHON) -m ruff format .

prototxt: env ## write the committed nets and solvers again from their definition
	@$(PYTHON) prototxt/generate.py

data-demo: env ## fetch the demo's images and make their LMDBs and batch plan
	@$(PYTHON) data_prep/demo_images.py
	@$(PYTHON) data_prep/build_set.py --images data/demo/images --groups data/demo/groups.csv --size 64 --out data/$(SET) $(if $(filter 1,$(HOLDOUT)),--holdout 0.1)
	@mkdir -p $(LOSSES:%=runs/$(SET)/%_$(DIM)/caffe) # stock `caffe train` aborts when the folder of its snapshots is missing

# How long to train, and when to save.
TRAINING = $(if $(ITERS),--iterations $(ITERS)) $(if $(SAVE_MINUTES),--save-minutes $(SAVE_MINUTES)) $(if $(KEEP),--keep $(KEEP))

# The demo's matrices are small: with two threads OpenBLAS takes half as long again as with one.
ONE_THREAD := OPENBLAS_NUM_THREADS=1

train-demo: data-demo ## train the demo's embedding [METHOD=lifted] [SEED=1] [ITERS=] [RUN=name]
	@$(MAKE) -s --no-print-directory fit-demo

# The net and the batch plan of a method, size and batch, where they are not committed or made with the set.
.PHONY: fit-demo cell-demo
fit-demo:
	@test -e $(DEMO_NET)/solver.prototxt || $(PYTHON) prototxt/generate.py demo/$(METHOD)_$(DIM)
	@$(PYTHON) data_prep/batch_plan.py --set data/$(SET) --kind $(PLANS)
	@$(ONE_THREAD) $(PYTHON) tools/train.py --solver $(DEMO_NET)/solver.prototxt --set data/$(SET) --run $(DEMO_RUN) --seed $(SEED) $(TRAINING) $(ON_GPU)

# A cell of a sweep over the demo: from the set to the scores.
cell-demo: fit-demo
	@$(MAKE) -s --no-print-directory $(DEMO_RUN)/metrics.json

demo: train-demo ## the whole job on the demo's images: train, extract, score, compare, draw
	@$(MAKE) --no-print-directory $(DEMO_RUN)/retrieval.png
	@$(PYTHON) tools/compare.py --metrics $(DEMO_RUN)/metrics.json --out $(DEMO_RUN)/report.md
	@$(MAKE) -s --no-print-directory $(DEMO_RUN)/report.html
	@$(PYTHON) tools/model_folder.py --run $(DEMO_RUN) --set data/$(SET) --net $(DEMO_NET)/deploy.prototxt
	@echo "report: $(DEMO_RUN)/report.html    picture: $(DEMO_RUN)/retrieval.png    numbers: $(DEMO_RUN)/metrics.json"

runs/$(SET)/raw_pixels.npz: data/$(SET)/set.json
	@$(PYTHON) tools/extract.py --set data/$(SET) --pixels 16 --out $@

$(DEMO_RUN)/features.npz: $(DEMO_RUN)/model.caffemodel $(DEMO_NET)/deploy.prototxt data/$(SET)/set.json
	@$(PYTHON) tools/extract.py --set data/$(SET) --net $(DEMO_NET)/deploy.prototxt --weights $< --out $@ $(ON_GPU)

$(DEMO_RUN)/features_untrained.npz: $(DEMO_RUN)/model.caffemodel $(DEMO_NET)/deploy.prototxt data/$(SET)/set.json
	@$(PYTHON) tools/extract.py --set data/$(SET) --net $(DEMO_NET)/deploy.prototxt --weights $(DEMO_RUN)/snapshot_iter_0.caffemodel --out $@ $(ON_GPU)

$(DEMO_RUN)/metrics.json: $(DEMO_RUN)/features.npz $(DEMO_RUN)/features_untrained.npz runs/$(SET)/raw_pixels.npz
	@$(PYTHON) tools/evaluate.py --features $< --out $@ --baseline raw_pixels=runs/$(SET)/raw_pixels.npz --baseline untrained=$(DEMO_RUN)/features_untrained.npz

$(DEMO_RUN)/report.html: $(DEMO_RUN)/features.npz $(DEMO_RUN)/metrics.json tools/report.py tools/report_template.html
	@$(PYTHON) tools/report.py --run $(DEMO_RUN) --set data/$(SET) --out $@ --again "make demo $(GIVEN)"

$(DEMO_RUN)/retrieval.png: $(DEMO_RUN)/features.npz $(DEMO_RUN)/metrics.json
	@$(PYTHON) tools/figures.py --set data/$(SET) --features $< --out $@

# --- one's own images --------------------------------------------------------------------------------------------------

# A folder with a folder of images for each class, or a CSV file path,class; and what the set is called.
DATA ?=
NAME ?=
# small or googlenet, pixels a side, share of the classes that are kept for the report and the seed of their choice; and
# MIRRORED=no: images are not mirrored.
NET ?=
SPLIT ?= 1
SIZE ?=
TEST ?=
MIRRORED ?=

train: env ## a searchable embedding of your own images: DATA=folder, or list.csv, and NAME=shoes
	$(call refuse,BATCH RECIPE HOLDOUT,its images a batch are chosen by the data)
	@$(if $(and $(value DATA),$(NAME)),,echo "make train needs DATA=<folder with a folder of images for each class, or list.csv> NAME=<name>"; exit 2)
	@$(PYTHON) tools/own.py --images $(call quoted,DATA) --name $(call quoted,NAME) --method $(METHOD) --dim $(DIM) --seed $(SEED) \
	  $(ON_GPU) --split $(SPLIT) $(if $(filter command environment,$(origin RUN)),--run $(call quoted,RUN)) $(if $(NET),--net $(NET)) \
	  $(if $(value WEIGHTS),--weights $(call quoted,WEIGHTS)) $(if $(SIZE),--size $(SIZE)) $(if $(ITERS),--iterations $(ITERS)) \
	  $(if $(TEST),--test $(TEST)) $(if $(filter no,$(MIRRORED)),--no-mirror) $(if $(UNREADABLE),--skip-unreadable)

# --- the paper's sets --------------------------------------------------------------------------------------------------

$(if $(filter $(LOSSES) pool5,$(METHOD)),,$(error METHOD=$(METHOD): lifted, contrastive, triplet or pool5))
$(if $(filter 64 128 256 512,$(DIM)),,$(error DIM=$(DIM): the nets have 64, 128, 256 or 512 dimensions))
$(if $(filter paper authors,$(RECIPE)),,$(error RECIPE=$(RECIPE): paper (20,000 iterations) or authors (CUB: 40,000)))
$(if $(filter-out no yes,$(MIRRORED)),$(error MIRRORED=$(MIRRORED): no, or nothing))
$(if $(filter-out skip,$(UNREADABLE)),$(error UNREADABLE=$(UNREADABLE): skip, or nothing))

DATA_OPTIONS = $(if $(filter pairs,$(PLANS)),--batch $(BATCH)) $(if $(ARCHIVE),--archive $(call quoted,ARCHIVE)) $(if $(RESIZE),--resize $(RESIZE)) $(if $(COUNTS),--counts $(COUNTS)) \
  $(if $(UNREADABLE),--skip-unreadable) $(if $(LAYOUT),--layout $(LAYOUT))
START = $(if $(value WEIGHTS),$(call quoted,WEIGHTS),data/bvlc_googlenet.caffemodel)
# The K of Recall@K that the literature reports for each set.
KS_cub := 1,2,4,8
KS_cars196 := 1,2,4,8
KS_sop := 1,10,100,1000

weights: env ## fetch BVLC GoogLeNet's weights, where the paper's nets start [WEIGHTS=path]
	@$(PYTHON) data_prep/imagenet.py $(if $(WEIGHTS),--weights $(call quoted,WEIGHTS))

data-cub: ## CUB-200-2011: fetch it, make its LMDBs and batch plan [ARCHIVE=] [RESIZE=] [COUNTS=any] [LAYOUT=paired]
data-cars196: ## the same for Cars196
data-sop: ## the same for Stanford Online Products
$(PAPER:%=data-%): data-%: env
	@$(PYTHON) data_prep/paper_sets.py --set $* $(DATA_OPTIONS)
	@mkdir -p $(foreach dim,64 128 256 512,$(LOSSES:%=runs/$*/%_$(dim)/caffe)) # stock `caffe train` aborts when a snapshot's folder is missing

train-cub: ## the paper's experiment on CUB: data, training, scores beside the published ones [DIM=64] [SEED=1] [RECIPE=authors]
train-cars196: ## the same for Cars196
train-sop: ## the same for Stanford Online Products
PAPER_NET = prototxt/$*/$(METHOD)_$(DIM)
HOME_OF_RUN = runs/$*/$(if $(filter pool5,$(METHOD)),pool5_1024/pretrained,$(METHOD)_$(DIM)$(if $(filter-out $(OWN_BATCH),$(BATCH)),_m$(BATCH))/$(RUN))
$(PAPER:%=train-%): train-%: weights data-%
	@$(MAKE) -s --no-print-directory cell-$*
	@$(PYTHON) tools/figures.py --set data/$* --features $(HOME_OF_RUN)/features.npz --out $(HOME_OF_RUN)/retrieval.png
	@$(PYTHON) tools/compare.py --metrics $(HOME_OF_RUN)/metrics*.json --published $* --out $(HOME_OF_RUN)/report.md
	@$(if $(filter pool5,$(METHOD)),,$(PYTHON) tools/model_folder.py --run $(HOME_OF_RUN) --set data/$* --net $(PAPER_NET)/deploy.prototxt)
	@echo "report: $(HOME_OF_RUN)/report.md (make report-$* makes a page of it)    picture: $(HOME_OF_RUN)/retrieval.png$(if $(filter pool5,$(METHOD)),,    training: $(HOME_OF_RUN)/log.csv)"

# A cell of a sweep, and what train-<set> does: from the set to the scores.
.PHONY: $(PAPER:%=cell-%)
ifeq ($(METHOD),pool5)
$(PAPER:%=cell-%): cell-%:
	@$(PYTHON) tools/score.py --run $(HOME_OF_RUN) --set data/$* --net prototxt/$*/lifted_64/deploy.prototxt --ks $(KS_$*) \
	  --weights $(START) --blob pool5/7x7_s1 $(ON_GPU)
else
$(PAPER:%=cell-%): cell-%:
	@test -e $(PAPER_NET)/solver.prototxt || $(PYTHON) prototxt/generate.py $*/$(METHOD)_$(DIM)
	@$(PYTHON) data_prep/batch_plan.py --set data/$* --kind $(PLANS) --batch $(BATCH)
	@$(PYTHON) tools/train.py --solver $(PAPER_NET)/solver$(if $(filter authors-cub,$(RECIPE)-$*),_authors).prototxt --set data/$* --batch $(BATCH) \
	  --run $(HOME_OF_RUN) --seed $(SEED) --weights $(START) $(TRAINING) $(ON_GPU)
	@$(PYTHON) tools/score.py --run $(HOME_OF_RUN) --set data/$* --net $(PAPER_NET)/deploy.prototxt --ks $(KS_$*) $(ON_GPU)
endif

# --- sweeps ------------------------------------------------------------------------------------------------------------

# What is swept; commas between. -j of make says how many cells run side by side.
METHODS ?= lifted,contrastive,triplet$(if $(filter demo-all,$(MAKECMDGOALS)),,$(comma)pool5)
DIMS ?= 64$(if $(filter demo-all,$(MAKECMDGOALS)),,$(comma)128$(comma)256$(comma)512)
SEEDS ?= $(if $(filter demo-all,$(MAKECMDGOALS)),1$(comma)2$(comma)3,1)
BATCHES ?= 32,48,64,128
# Where the cells run: here, or as a job array of a Slurm cluster.
ENGINE ?= local
PARTITION ?=
GPUS ?=
CPUS ?=
MINUTES ?=
ACCOUNT ?=
$(foreach name,$(call listed,METHODS),$(if $(filter $(LOSSES) pool5,$(name)),,$(error METHODS=$(METHODS): of lifted, contrastive, triplet and pool5, commas between)))
$(foreach size,$(call listed,DIMS),$(if $(filter 64 128 256 512,$(size)),,$(error DIMS=$(DIMS): of 64, 128, 256 and 512, commas between)))
$(if $(filter command environment,$(origin SEEDS)),$(if $(shell [[ "$(SEEDS)" =~ ^[0-9]+(,[0-9]+)*$$ ]] || echo wrong),$(error SEEDS=$(SEEDS): numbers, commas between)))
SWEEP = $(PYTHON) tools/sweep.py --seeds $(SEEDS) --jobs $(or $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS))),1) --engine $(ENGINE) \
  $(if $(PARTITION),--partition $(PARTITION)) $(if $(GPUS),--gpus $(GPUS)) $(if $(CPUS),--cpus $(CPUS)) $(if $(MINUTES),--minutes $(MINUTES)) \
  $(if $(ACCOUNT),--account $(ACCOUNT)) $(foreach name,ITERS RECIPE WEIGHTS GPU,$(if $(value $(name)),--with $(name)=$(call quoted,$(name))))

reproduce-cub: ## every method and size of the embedding on CUB: a run for each, then the tables and curves of all [SEEDS=1,2,3] [-j 4] [ENGINE=slurm]
reproduce-cars196: ## the same for Cars196
reproduce-sop: ## the same for Stanford Online Products
$(PAPER:%=reproduce-%): reproduce-%: weights data-%
	$(call refuse,METHOD DIM SEED RUN BATCHES,METHODS= DIMS= and SEEDS= choose its cells)
	@$(SWEEP) --set $* --methods $(METHODS) --dims $(DIMS) $(if $(filter command environment,$(origin BATCH)),--batches $(BATCH))

ablation-cub: ## the lifted loss on CUB with 32, 48, 64 and 128 images a batch
ablation-cars196: ## the same for Cars196
ablation-cub ablation-cars196: ablation-%: weights data-%
	$(call refuse,METHOD METHODS DIMS SEED RUN BATCH,DIM= BATCHES= and SEEDS= choose its cells)
	@$(SWEEP) --set $* --methods lifted --dims $(DIM) --batches $(BATCHES)

demo-all: data-demo ## lifted, contrastive and triplet loss on the demo, three seeds each, beside raw pixels
	$(call refuse,METHOD DIM SEED RUN BATCH,METHODS= DIMS= and SEEDS= choose its cells)
	@$(MAKE) -s --no-print-directory runs/$(SET)/raw_pixels.npz
	@$(SWEEP) --set $(SET) --methods $(METHODS) --dims $(DIMS)

compare-cub: ## all finished runs on CUB beside the published numbers, seeds in one row
compare-cars196: ## the same for Cars196
compare-sop: ## the same for Stanford Online Products
$(PAPER:%=compare-%): compare-%: env
	@$(PYTHON) tools/compare.py --runs runs/$* --published $* --out runs/$*/report.md
	@$(PYTHON) tools/plots.py --runs runs/$* --published $* --out runs/$*/curves.png

report-cub: ## a run on CUB as one page: table, curves, retrieved images, map, recipe [DIM=64] [SEED=1] [RUN=name]
report-cars196: ## the same for Cars196
report-sop: ## the same for Stanford Online Products
$(PAPER:%=report-%): report-%: env
	@$(PYTHON) tools/report.py --run $(HOME_OF_RUN) --set data/$* --out $(HOME_OF_RUN)/report.html --again "make train-$* report-$* $(GIVEN)"

# The report that check-report opens.
REPORT ?= $(DEMO_RUN)/report.html
check-report: env ## open a report in Chromium, narrow and wide; fail where a reader would see something broken [REPORT=file]
	@$(PYTHON) tools/check_report.py $(REPORT) --shots runs/figures

figures: env ## the paper's figure 4, from this project's losses: runs/figures/gradients.png
	@$(PYTHON) tools/gradient_figure.py --out runs/figures/gradients.png

bench: env ## speed of the loss, the data layer, the LMDBs and an iteration of GoogLeNet, as ratios against their peers
	@$(PYTHON) tests/bench.py --out runs/bench.json

bench-eval: env ## speed of retrieval and affinity propagation, as ratios against their peers
	@$(PYTHON) tools/bench_eval.py --out runs/bench_eval.json
