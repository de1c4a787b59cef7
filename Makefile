# make demo | test | lint | format | build | sample | quality | ablate | bench-check | page-check | console-check |
# ray-check | s3-check | fuzz | neon | sanitize | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCE ?= ../shared/data/debian.h5
DATASETS ?= ../shared/data/debian.h5 ../shared/data/pypi200k-int8.h5
JOBS ?= 2
# Of the fuzzing: how many blocks of codes to compare, and from which seed.
BLOCKS ?= 10000000
SEED ?= 1

KERNEL_SOURCES := csrc/dispatch.cpp csrc/pack.cpp $(wildcard csrc/kernels_*.cpp) tests/native/fuzz_kernels.cpp
KERNEL_FLAGS := -std=c++17 -O3 -ffp-contract=off -Wall -Wextra -Icsrc

.PHONY: demo test lint format build sample quality ablate bench-check page-check console-check ray-check s3-check lance-check fuzz neon sanitize clean

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
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[parquet,bench,server,client,dev]'
	touch $@

sample: build
	$(BIN)/python bench/make_sample.py $(SOURCE) data/debian-sample.h5

# What has a stored result is only printed.
quality: build
	$(BIN)/python bench/quality.py $(DATASETS) --queries learn none

ablate: build
	$(BIN)/python bench/ablate.py $(DATASETS)
	$(BIN)/python bench/ablate.py --table --write docs/ABLATION.md

# A few figures of the sample against the stored ones: a loss beyond noise fails. `bench/check.py --store` stores anew.
bench-check: build
	$(BIN)/python bench/check.py

# A report in a headless browser: needs node, npm and Debian's chromium. REPORT is the page.
REPORT ?= report.html
page-check:
	npm install --silent --no-save --prefix build/page playwright-core axe-core
	NODE_MODULES=build/page/node_modules node bench/check_page.mjs $(REPORT)

# The server's console in a headless browser, with the index of the sample.
console-check: build
	npm install --silent --no-save --prefix build/page playwright-core axe-core
	NODE_MODULES=build/page/node_modules $(BIN)/python bench/console.py data/debian-sample.h5

# A compile and a server on Ray, which is installed beside the virtual environment and not into it.
ray-check: build build/ray/installed
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/ray $(BIN)/python -m pytest -q tests/shards/test_ray_engine.py \
	    tests/server/test_ray_serve.py

build/ray/installed: constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt --target build/ray 'ray[serve]'
	touch $@

# Compiles between objects of an S3-compatible store on loopback, in one process and on Ray; installed beside likewise.
s3-check: build build/ray/installed build/s3/installed
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/ray:$(CURDIR)/build/s3 $(BIN)/python -m pytest -q tests/objects

# Lance datasets as input, in an object store too, and LanceDB on what is exported; installed beside likewise.
lance-check: build build/lance/installed build/s3/installed
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/lance:$(CURDIR)/build/s3 $(BIN)/python -m pytest -q tests/data/test_lance.py \
	    tests/interchange/test_lance.py tests/objects/test_s3.py -k lance

build/lance/installed: constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt --target build/lance pylance lancedb
	touch $@

build/s3/installed: constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt --target build/s3 s3fs 'moto[server]'
	touch $@

# Every CPU level that this machine runs against the scalar one, on random calls.
fuzz: build/fuzz_kernels
	$< $(BLOCKS) $(SEED)

build/fuzz_kernels: $(KERNEL_SOURCES) $(wildcard csrc/*.h)
	mkdir -p $(@D)
	$(CXX) $(KERNEL_FLAGS) $(KERNEL_SOURCES) -o $@

# The same on an emulated 64-bit ARM processor: fewer blocks, as emulation is slow.
neon: BLOCKS = 200000
neon:
	@if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then $(MAKE) build/fuzz_kernels_neon \
	    && qemu-aarch64 build/fuzz_kernels_neon $(BLOCKS) $(SEED); \
	else echo 'skipped: NEON needs a cross compiler and an emulator: apt-get install g++-aarch64-linux-gnu qemu-user'; fi

build/fuzz_kernels_neon: $(KERNEL_SOURCES) $(wildcard csrc/*.h)
	mkdir -p $(@D)
	aarch64-linux-gnu-g++ -static $(KERNEL_FLAGS) $(KERNEL_SOURCES) -o $@

# The native tests under the address, undefined-behaviour and thread sanitizers, then the Python tests of the native code
# on an extension built with the first two. The interpreter itself is not: the run-time library is loaded before it, with
# the C++ one, whose exceptions it watches; and the interpreter's own leaks do not count. The Numba kernels are not native.
SANITIZED := build/sanitized
SANITIZED_TESTS := tests/test_searcher.py \
    $(filter-out %/test_additive.py %/test_jit.py,$(wildcard tests/kernels/test_*.py))
sanitize: build
	$(BIN)/python -m pytest -q tests/native
	CFLAGS='-g -fsanitize=address,undefined -fno-sanitize-recover=all' LDFLAGS='-fsanitize=address,undefined' \
	    $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/lib $(BIN)/python -m pytest -q \
	    -o pythonpath='$(SANITIZED)/lib .' $(SANITIZED_TESTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis vqdistill/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
