PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test results style quality clean

# Installed again only when what is to be installed changed.
$(VENV)/installed: setup.py editable_hf/version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

install: $(VENV)/installed

demo: install
	CUDA_VISIBLE_DEVICES= $(BIN)/accelerate launch --num_processes 1 recipes/iwslt_de_en.py --config recipes/configs/demo.yaml

test: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m "not gpu" -n 2 --dist worksteal

results: install
	$(BIN)/python scripts/results_page.py

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache
