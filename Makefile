# JetLLM: make serve | make test | make check | make bench

PYTHON ?= python3
MODEL := smollm2-135m-instruct
TEST_MODELS := $(MODEL) gemma-3-270m
# Most tests wait for processes; those of a file share what it loads.
PARALLEL := -n 2 --dist loadfile
UV_VERSION := 0.13.8

VENV := .venv
BIN := $(VENV)/bin
SERVE := $(VENV)/serve.stamp
TEST := $(VENV)/test.stamp
TRANSFORMERS := .venv-transformers/test.stamp
CLIENTS := .venv-clients/test.stamp
APPLIANCE := .venv-appliance/test.stamp

MAKE_VENV := scripts/make_venv.py
COMMON := $(MAKE_VENV) pyproject.toml requirements/build.txt

.PHONY: help serve test test-transformers test-clients test-harness test-appliance test-310 run-310 check bench bench-memory soak deb bundle lock clean

help:
	@echo "make serve              install, fetch $(MODEL), serve on 127.0.0.1:8080"
	@echo "make test               everything the tests need, then the tests"
	@echo "make check              ruff, mypy --strict, the architecture test"
	@echo "make bench              the benchmarks; results go into docs/bench-log.md by hand"
	@echo "make bench-memory       the memory formula against real peaks, about 20 minutes"
	@echo "make test-transformers  the reference engine's tests, in an environment with torch"
	@echo "make test-clients       the API against real clients: openai, LangChain, LiteLLM, lm-evaluation-harness, ..."
	@echo "make test-harness       full runs of the harness on real models, and its proof by planted defects"
	@echo "make test-appliance     images, units, package, update and rollback in podman and systemd; needs root"
	@echo "make soak               the harness on $(MODEL) with a mixed load for MINUTES=30"
	@echo "make test-310           the tests under Python 3.10, where there is one"
	@echo "make deb                dist/jetllm_VERSION_{arm64,amd64}.deb, the host's side of an appliance"
	@echo "make bundle             a signed release: IMAGE= VERSION= KEY= OUTPUT= MODELS= (docs/bundle.md)"
	@echo "make lock               write requirements/*.txt anew; UPGRADE=--upgrade for new versions"
	@echo "make clean              remove environments and caches; weights are kept"

serve: $(SERVE)
	@$(BIN)/jetllm pull $(MODEL)
	@exec $(BIN)/jetllm serve --preload $(MODEL)

test: $(TEST)
	$(BIN)/jetllm pull $(TEST_MODELS)
	$(BIN)/python -m pytest $(PARALLEL)

check: $(TEST)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: $(TEST)
	$(BIN)/jetllm pull $(TEST_MODELS)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.tasks
	$(BIN)/python -m benchmarks.cross_check

bench-memory: $(TEST)
	$(BIN)/jetllm pull $(TEST_MODELS)
	$(BIN)/python -m benchmarks.memory

test-transformers: $(TRANSFORMERS)
	.venv-transformers/bin/python -m pytest -m transformers -rs

# These are in `make test`, too; here they find what they skip without: schemathesis, Playwright, and the openai
# version that LiteLLM wants.
WITH_CLIENTS := tests/clients/test_openai.py tests/test_schemathesis.py tests/test_openapi.py \
  tests/test_page.py tests/test_page_chat.py tests/test_page_reach.py tests/test_page_views.py
test-clients: $(CLIENTS)
	.venv-clients/bin/jetllm pull $(MODEL)
	.venv-clients/bin/python -m pytest -m clients -rs
	.venv-clients/bin/python -m pytest -rs $(PARALLEL) $(WITH_CLIENTS)

# HARNESS chooses among them: -k ...
test-harness: $(TRANSFORMERS)
	.venv-transformers/bin/jetllm pull $(TEST_MODELS)
	.venv-transformers/bin/python -m pytest -m harness -rs $(HARNESS)

# The last ones are in `make test`, too; here they find hadolint, shellcheck and the schemas of Kubernetes.
WITH_TOOLS := tests/test_containers.py tests/test_container_scripts.py tests/test_k3s.py tests/test_deb.py
test-appliance: $(APPLIANCE)
	.venv-appliance/bin/jetllm pull $(MODEL)
	.venv-appliance/bin/python -m pytest -m appliance -rs
	PATH="$(CURDIR)/.venv-appliance/bin:$$PATH" .venv-appliance/bin/python -m pytest -rs $(WITH_TOOLS)

MINUTES ?= 30
soak: $(TEST)
	$(BIN)/jetllm pull $(MODEL)
	$(BIN)/jetllm check $(MODEL) --soak $(MINUTES)

deb:
	$(PYTHON) containers/deb/build.py

bundle: $(SERVE)
	JETLLM=$(BIN)/jetllm containers/bundle/make.sh $(OPTIONS)

# A pyenv shim called python3.10 may exist and not run: each candidate is tried.
test-310:
	@for python in python3.10 $(HOME)/.pyenv/versions/3.10*/bin/python3.10; do \
	  if $$python -c "" 2>/dev/null; then exec $(MAKE) --no-print-directory run-310 PY310=$$python; fi; \
	done; \
	echo "test-310: skipped, no python3.10 on PATH or in ~/.pyenv/versions"

run-310: .venv-310/test.stamp
	.venv-310/bin/python -m pytest $(PARALLEL) $(TESTS_310)

$(SERVE): $(COMMON) requirements/base.txt
	@$(call venv,$(PYTHON),$(VENV),requirements/base.txt)

$(TEST): $(COMMON) requirements/test.txt
	@$(call venv,$(PYTHON),$(VENV),requirements/test.txt)
	@touch $(SERVE)

$(TRANSFORMERS): $(COMMON) requirements/transformers.txt requirements/torch.txt
	@$(call venv,$(PYTHON),.venv-transformers,requirements/transformers.txt requirements/torch.txt)

$(CLIENTS): $(COMMON) requirements/clients.txt requirements/torch.txt
	@$(call venv,$(PYTHON),.venv-clients,requirements/clients.txt requirements/torch.txt)

$(APPLIANCE): $(COMMON) requirements/appliance.txt
	@$(call venv,$(PYTHON),.venv-appliance,requirements/appliance.txt)

.venv-310/test.stamp: $(COMMON) requirements/test.txt
	@$(call venv,$(PY310),.venv-310,requirements/test.txt)

# $(call venv,python,directory,lock files)
define venv
command -v $(1) >/dev/null || { echo "make: $(1) not found"; \
  echo "    hint: sudo apt-get install python3 python3-venv"; exit 1; }; \
$(1) $(MAKE_VENV) $(2) $(3) && touch $@
endef

LOCK := .venv-lock/bin/uv pip compile --universal --python-version 3.10 --no-python-downloads \
  --generate-hashes --no-annotate --custom-compile-command "make lock" --quiet $(UPGRADE)

lock: .venv-lock/uv-$(UV_VERSION).stamp
	sed -n 's/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | cat - requirements/build.in | $(LOCK) - -o requirements/build.txt
	$(LOCK) pyproject.toml -o requirements/base.txt
	$(LOCK) pyproject.toml --extra test -c requirements/base.txt -o requirements/test.txt
	echo torch > .venv-lock/excludes.txt
	$(LOCK) pyproject.toml --extra test --extra transformers -c requirements/test.txt \
	  --excludes .venv-lock/excludes.txt -o requirements/transformers.txt
	$(LOCK) pyproject.toml --extra test --extra transformers --extra clients \
	  --excludes .venv-lock/excludes.txt -o requirements/clients.txt
	$(LOCK) pyproject.toml --extra test --extra appliance -c requirements/test.txt -o requirements/appliance.txt
	$(LOCK) pyproject.toml --extra transformers -c requirements/transformers.txt \
	  --excludes .venv-lock/excludes.txt -o containers/transformers.txt

.venv-lock/uv-$(UV_VERSION).stamp:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install uv==$(UV_VERSION)
	@touch $@

clean:
	rm -rf .venv .venv-310 .venv-appliance .venv-clients .venv-lock .venv-transformers .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
