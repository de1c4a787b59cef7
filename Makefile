# make demo | test | lint | format | build | sample | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?= ../shared/data/debian.h5
JOBS ?= 2

.PHONY: demo test lint format build sample clean

demo: build
	$(BIN)/python bench/demo.py data/debian-sample.h5

test: lint
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict vqdistill

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/installed

# The set-up runs once, and again when what it installs or compiles changes. The build tools are installed first, pinned, so
# that the extension is not built by whatever an isolated build would download.
$(VENV)/installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*.cpp csrc/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel pybind11
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[parquet,dev]'
	touch $@

sample: build
	$(BIN)/python bench/make_sample.py $(SOURCE) data/debian-sample.h5

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis vqdistill/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
