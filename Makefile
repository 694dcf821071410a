# One verb a target. On a fresh clone each makes its virtual environment first.
# Needs: make, Python 3.11 or newer, a package index. Settings: make test PYTHON=python3.12

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
# Installed before everything else, so that nothing else chooses a torch.
TORCH = torch==2.13.0
# Triton's schema for the tests, without the old versions that its client asks for.
TRITON = tritonclient==2.73.0
# Test processes. Each takes one thread of PyTorch, so that they do not fight over cores.
JOBS = 2
PHOTO = examples/photos/street.jpg
DATA = ../shared/data
CASES = ../shared/cases
ONLY =
REPORT = benchmarks/results/coco-val-340-cpu.json
# gets runtimes-KIND.json, by the kind of CPU that make runtimes runs on
RUNTIMES = benchmarks/results
FRAME = studies/results/frame-input-dev.json
BUILDS = export/results/engine-builds.json
# An environment with rtmlib; made where it is missing.
RTMLIB = out/rtmlib
# The examples that need Node's packages, and the marks that these are there.
NODE_EXAMPLES = examples/browser examples/node
NODE_STAMPS = $(NODE_EXAMPLES:%=%/node_modules/.stamp)
# make bench LIMIT='--limit 20' REPORT=out/bench.json for a trial
LIMIT =
FLAGS =

.PHONY: help demo test slow browser docs check lint format bench runtimes builds models cases soak tables gallery clean

help:
	@echo "make demo    poses on $(PHOTO), drawn into out/"
	@echo "make test    check, then every test"
	@echo "make slow    the examples in the browser, Node and C++, where these are installed"
	@echo "make browser  serves the page of examples/browser on this machine"
	@echo "make docs    the documentation as pages, into docs/_build"
	@echo "make check   lint, types, import floors"
	@echo "make lint    ruff only"
	@echo "make format  rewrite the sources as ruff wants them"
	@echo "make bench   accuracy of the bundled model and of MoveNet on the photos in DATA=$(DATA)"
	@echo "make runtimes  times of cfpose's CPU runtimes against rtmlib and MoveNet, in turns"
	@echo "make builds  engines of the bundled models, by TensorRT-RTX without a GPU: some 15 minutes"
	@echo "make models  the bundled models anew, from photos and labels into runs/: hours"
	@echo "make cases   what people ran into with tools like this one, of CASES=$(CASES), where it is there"
	@echo "make soak    long runs that look for leaks, and 200 kills; not part of make test"
	@echo "make tables  the tables of the documents, from the committed reports"
	@echo "make gallery  docs/demo.jpg and docs/gallery, drawn with the bundled models"
	@echo "make clean   remove what these commands made"

demo: $(VENV)/.demo
	$(BIN)/cfpose predict $(PHOTO) --save out

# pytest stays the last command: its summary is the last line.
test: check
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# The redirection makes it a shell's command: make itself has no `command`.
slow: $(VENV)/.dev $(if $(shell command -v npm 2>/dev/null),$(NODE_STAMPS))
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slow

browser: examples/browser/node_modules/.stamp
	cd examples/browser && npm start

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo "open docs/_build/index.html"

check: lint
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py
	$(BIN)/lint-imports

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/cfpose-bench boxes $(DATA)/labellers/yolox_nano.onnx --dataset coco-val \
		--data-root $(DATA) --threshold 0.05 --nms 0.45 $(LIMIT) -o out/yolox_nano.json
	$(BIN)/cfpose-bench --dataset coco-val --data-root $(DATA) $(LIMIT) $(FLAGS) \
		--boxes gt --boxes detector --boxes out/yolox_nano.json --model cfpose-s --model cfpose-m \
		--model movenet:$(DATA)/labellers/movenet_lightning.onnx \
		--model movenet:$(DATA)/labellers/movenet_thunder.onnx \
		--json $(REPORT) --csv $(REPORT:.json=.csv) --html out/bench.html

# about six minutes on two cores, which must have nothing else to do
runtimes: $(VENV)/.dev $(RTMLIB)/bin/python out/w32.onnx out/w32-int8.onnx
	$(BIN)/cfpose-bench runtimes --w32 out/w32.onnx --w32-int8 out/w32-int8.onnx \
		--detector $(DATA)/labellers/yolox_nano.onnx \
		--thunder $(DATA)/labellers/movenet_thunder.onnx \
		--peer-python $(RTMLIB)/bin/python $(FLAGS) --results $(RUNTIMES)

# what was built is kept, so a run that was stopped goes on
builds: $(VENV)/.dev
	$(BIN)/python studies/engine_builds.py $(BUILDS)

$(RTMLIB)/bin/python: | $(VENV)/.dev
	$(BIN)/cfpose-bench peers install rtmlib $(RTMLIB)

out/w32.onnx: | $(VENV)/.dev
	@mkdir -p out
	$(BIN)/python studies/w32.py untrained $@

out/w32-int8.onnx: out/w32.onnx
	$(BIN)/python studies/w32.py int8 $< $@

# JOBS=2 runs at a time; RUNS= and THREADS= are read there too
models: $(VENV)/.dev
	$(MAKE) --file training/recipes/models.mk --jobs $(JOBS) BIN=$(BIN)/ DATA=$(DATA)

# ONLY='09 17' runs those alone
cases: $(VENV)/.dev
	@if [ -f $(CASES)/run-all ]; \
		then CFPOSE_BIN=$(abspath $(BIN)) bash $(CASES)/run-all $(ONLY); \
		else echo "the cases are not in $(CASES), so none was run; CASES=FOLDER names their place"; fi

soak: $(VENV)/.dev
	$(BIN)/python tests/long/soak.py
	$(BIN)/python tests/long/faults.py

tables: $(VENV)/.dev
	$(BIN)/python -m cfpose_bench.tables $(REPORT) README.md cfpose_sdk/models/README.md
	$(BIN)/python -m cfpose_bench.tables cfpose_sdk/models cfpose_sdk/models/README.md
	$(BIN)/python -m cfpose_bench.tables $(RUNTIMES) benchmarks/README.md
	$(BIN)/python -m cfpose_bench.tables $(FRAME) docs/export.md
	$(BIN)/python -m cfpose_bench.tables $(BUILDS) docs/engine-options.md
	$(BIN)/python -m cfpose_bench.tables 'benchmarks/results/gpu-*.json' benchmarks/README.md
	$(BIN)/python -m cfpose_export.precision.drift export/results/drift.json docs/precision.md

# --coco holds no times: the same models write the same files
gallery: demo
	cp out/$(notdir $(PHOTO)) docs/demo.jpg
	$(BIN)/cfpose predict docs/gallery/photos --save docs/gallery/drawn --coco docs/gallery/poses.json

clean:
	rm -rf $(VENV) build dist out docs/_build docs/generated .cfpose-bench .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache $(NODE_EXAMPLES:%=%/node_modules)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cfpose needs Python 3.11 or newer, $(PYTHON) is older; \
	run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The stamps record which extras the environment holds; a changed pyproject.toml installs again.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps '$(TRITON)'
	@touch $@ $(VENV)/.demo

# No scripts: onnxruntime-node's would fetch libraries for CUDA from outside the registry.
examples/%/node_modules/.stamp: examples/%/package-lock.json
	@cd examples/$* && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && \
		touch node_modules/.stamp || \
		echo "npm ci failed in examples/$*: tests that need its packages are skipped" >&2
