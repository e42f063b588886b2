PYTHON ?= python3
VENV ?= .venv
# What is installed: the releases that CI tested. `CONSTRAINTS=` (nothing) takes the newest ones that setup.py allows.
CONSTRAINTS ?= constraints/tested.txt
# Which build of torch: `auto` looks for a GPU and takes the CPU's small one without; see `uv help pip install`.
TORCH_BACKEND ?= auto
# Which tests: `SELECT=slow` runs the long ones, `SELECT=compat` those of the oldest and newest releases.
SELECT ?= not gpu and not slow
# The release of torch in constraints/tested.txt.
TORCH ?= 2.13.0

BIN := $(VENV)/bin
WANTED := -e ".[dev]" $(addprefix -c ,$(CONSTRAINTS))
LOCK := uv pip compile setup.py --extra dev --universal --upgrade --refresh --no-header --no-annotate --quiet

.PHONY: install demo test results models style quality docs lock clean

# Installed again only when what is to be installed changed. torch's builds for CPUs and older CUDAs are on its own index;
# where that is out of reach, pip takes what it finds.
$(VENV)/installed: setup.py editable_hf/version.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH_BACKEND) $(WANTED) \
		|| { echo "torch's own index is out of reach, it seems: pip goes on without"; $(BIN)/pip install --quiet $(WANTED); }
	touch $@

install: $(VENV)/installed

demo: install
	CUDA_VISIBLE_DEVICES= $(BIN)/accelerate launch --num_processes 1 recipes/iwslt_de_en.py --config recipes/configs/iwslt_de_en/demo.yaml

test: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m "$(SELECT)" -n 2 --dist worksteal

results: install
	$(BIN)/python scripts/results_page.py

# The tables of docs/models.md, from the tests that they stand for.
models: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python tests/models_page.py

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site of docs/, in site/; a broken link is an error.
docs: install
	$(BIN)/mkdocs build --quiet --strict

# Writes constraints/ anew: everything that is installed, for every platform and Python of setup.py.
lock: install
	echo "torch==$(TORCH)" | $(BIN)/$(LOCK) -c - -o constraints/tested.txt
	$(BIN)/$(LOCK) --resolution lowest-direct -o constraints/oldest.txt

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache
