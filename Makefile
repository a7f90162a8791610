# `make train` and `make test` need Python 3.11 with venv, make, git and a C compiler; they install everything else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := shards/built/sample
FREE_PORT = $(shell $(PYTHON) -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
# Two ranks with one thread each. More threads than cores are many times slower.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export BALI_TIMEOUT_FACTOR ?= 1
TEST_WORKERS ?= 2

.PHONY: train test test-all test-instruction-sets fuzz check docs coverage bench install clean

train: install $(SAMPLE)/shards/index.json
	DS_ACCELERATOR=cpu $(BIN)/deepspeed --num_accelerators 2 --master_port $(FREE_PORT) --log_level warning \
		launch/train.py --config launch/recipes/sample.yaml

$(SAMPLE)/graph/manifest.json: $(wildcard shards/sample/*.RRF) | install
	$(BIN)/bali-ds graph build --rrf shards/sample --out $(SAMPLE)/graph

$(SAMPLE)/shards/index.json: $(SAMPLE)/graph/manifest.json shards/sample/corpus.pubtator \
		shards/sample/encoder/tokenizer.json | install
	$(BIN)/bali-ds shards build --graph $(SAMPLE)/graph --corpus pubtator:shards/sample/corpus.pubtator \
		--tokenizer shards/sample/encoder --validation 0.05 --out $(SAMPLE)/shards

# Two tests at a time, for two cores. On a busy or slow machine, multiply all time limits: make test BALI_TIMEOUT_FACTOR=3
test: install
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile

test-all: install
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

# A report only: no threshold fails. Ranks that tests fork are not traced.
coverage: install
	$(BIN)/python -m pytest -m "not slow and not system" --cov --cov-report=term --cov-report=html:runs/coverage

# The readers of files that anybody may have written, for ten minutes with damage that they have not met before.
fuzz: install
	BALI_FUZZ_MINUTES=10 $(BIN)/python -m pytest tests/test_reader_fuzz.py

# The order of floating-point sums depends on the instruction set. `make test` uses the best of this processor. avx512 is
# not named here, because torch then uses it even where the processor lacks it. The native kernels are off in the first two.
test-instruction-sets: install
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 $(BIN)/python -m pytest -m "not slow" tests/losses
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -m "not slow" tests/losses
	MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m "not slow" tests/losses

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/site/build.py

# The documentation as a site, in runs/site.
docs: install
	$(BIN)/python docs/site/build.py

bench: install
	$(BIN)/pip install -q -c constraints.txt -e ".[bench]"
	$(BIN)/pip install -q -c constraints.txt --no-deps open-clip-torch  # its loss alone is used, without torchvision
	for script in $(filter-out bench/gpu%,$(wildcard bench/*.py)); do $(BIN)/python $$script || exit 1; done

install: $(VENV)/installed

$(VENV)/installed: setup.py constraints.txt $(wildcard bali_ds/losses/contrastive/native/*)
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install Python 3.11 (Debian: apt-get install python3 python3-venv)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: the venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }
	@command -v cc >/dev/null || { echo "make: a C compiler is missing (Debian: apt-get install gcc)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip setuptools wheel
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf runs shards/built
