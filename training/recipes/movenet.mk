# cfpose-s and cfpose-m on MoveNet's trunks, from photos to students, each run a rule. From the root of a checkout:
#     make -f training/recipes/movenet.mk DATA=../shared/data CCP=../clothing-co-parsing/photos
# A run saves its state: after Ctrl-C or a crash the same command goes on. What is there already is not made again.

# Photos and labelling models; only read.
DATA = ../shared/data
# The photos of clothing-co-parsing (2,098, Apache-2.0).
CCP = ../clothing-co-parsing/photos
RUNS = runs/movenet
THREADS = 1
# Folder of the commands, with its last slash; none: those of the active environment.
BIN =

R = training/recipes
L = $(DATA)/labellers
TINYPOSE = $(L)/tinypose_256x192_v1.onnx
LABELS = $(RUNS)/data/labels/coco-unlabelled.json $(RUNS)/data/labels/ccp.json

# Keeps freed maps in the process, on glibc.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000
export OMP_NUM_THREADS = $(THREADS)

train = $(BIN)cfpose-train stage1 --recipe $(R)/$(1).toml --data-root $(RUNS)/data --out $(@D) --cache $(RUNS)/cache \
	--init $(L)/$(2).onnx --teacher $(TINYPOSE) --threads $(THREADS) --resume
label = $(BIN)cfpose-train label --data-root $(RUNS)/data --labeller tinypose:$(TINYPOSE) \
	tinypose:$(L)/tinypose_256x192_enhanced.onnx --views 2 --average mean --min-score 0.35 --min-agreement 0.6 \
	--min-joints 6 --threads $(THREADS) --resume --out $@

.PHONY: students
students: $(RUNS)/s/student.safetensors $(RUNS)/turned/student.safetensors $(RUNS)/m/student.safetensors

# The names that the recipes know, and a place for labels and photos beside them.
$(RUNS)/data:
	mkdir -p $@.new/labels $@.new/photos
	ln -s $(abspath $(DATA)/coco) $@.new
	mv $@.new $@

# Without photos that show what the evaluation's show.
$(RUNS)/data/photos/ccp/photos.json: | $(RUNS)/data
	$(BIN)python -m cfpose_training.data.near_photos $(CCP) --against $(DATA)/coco/images/val --into $(@D)

$(RUNS)/data/labels/coco-unlabelled.json: | $(RUNS)/data
	$(label) --annotations coco/person_keypoints_train.json --images coco/images/train --only-unlabelled \
		--holdout-every 10 --min-side 48

$(RUNS)/data/labels/ccp.json: | $(RUNS)/data/photos/ccp/photos.json
	$(label) --images photos/ccp --detector $(L)/rtmdet_nano_person_320.onnx --min-side 64

$(RUNS)/s/student.safetensors: | $(LABELS)
	$(call train,cfpose-s-movenet,movenet_lightning)

$(RUNS)/turned/student.safetensors: | $(LABELS)
	$(call train,cfpose-s-turned,movenet_lightning)

$(RUNS)/m/student.safetensors: | $(LABELS)
	$(call train,cfpose-m,movenet_thunder)
