# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# More for pip, e.g. an index that holds a CPU-only torch.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo
export PYTHONUNBUFFERED := 1

.PHONY: help env demo test lint format clean

help:
	@echo "make demo    generate a data set, train, evaluate, draw: a few minutes on two CPU cores"
	@echo "make test    the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the layout"
	@echo "make clean   remove the environment and what the demo made"

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Training needs Python 3.10 or newer; name one with 'make PYTHON=python3.11 ...'"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(READY)

# The commands of a first day, as a user would type them.
demo: $(READY)
	$(BIN)/python -m vision.data.shapes $(DEMO)/shapes --images 500 --seed 0
	$(BIN)/python train_ssd.py --data $(DEMO)/shapes --model-dir $(DEMO)/model --net mb1-ssd --resolution 200 \
		--num_epochs 24 --validation_epochs 6
	head -n 12 $(DEMO)/shapes/ImageSets/Main/test.txt | sed 's|.*|$(DEMO)/shapes/JPEGImages/&.jpg|' \
		| xargs $(BIN)/python run_ssd_example.py $(DEMO)/model/best.pth --threshold 0.3 --output $(DEMO)/pictures > $(DEMO)/detections.txt
	$(BIN)/python eval_ssd.py --trained_model $(DEMO)/model/best.pth --dataset $(DEMO)/shapes \
		--eval_dir $(DEMO)/eval_results
	@echo
	@echo "Look at $(DEMO)/pictures/*.jpg and $(DEMO)/model/curves.png"

# One worker for each core, and one thread for each worker: more would only wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
