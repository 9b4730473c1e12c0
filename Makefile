# make quickstart   the main job on this machine alone, offline after installation
# make test         the default test suite (minutes)
# make test-all     the slow checks too (real data and teachers where present)
# make lint         ruff, formatter, mypy, import rule
# make devices      what tests on real devices need and Debian and npm have: sshd, Chromium, a C++ compiler, the web runtimes
# make runners      the C++ runners, for this machine and for 64-bit ARM
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
JOBS   ?= 2
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

.PHONY: install quickstart test test-all lint devices runners
install: $(STAMP)

# torch first and pinned: on Linux an unpinned torch brings gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $(STAMP)

quickstart: install
	$(BIN)/edgekd quickstart --run-dir runs/quickstart

# Installed where root may; elsewhere the tests that need them skip and say so.
PACKAGES := openssh-server chromium cmake g++ nlohmann-json3-dev $(if $(shell command -v npm),,npm)
devices: $(VENV)/devices runtimes/web/node_modules
$(VENV)/devices: | $(STAMP)
	-[ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || (apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) > /dev/null)
	touch $@
runtimes/web/node_modules: runtimes/web/package-lock.json $(VENV)/devices
	-cd runtimes/web && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error && touch node_modules

runners: install
	$(BIN)/python runtimes/linux/build.py --arch x86_64 aarch64

test: install lint devices
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: install lint devices
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'slow or not slow' --timeout 3600

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
