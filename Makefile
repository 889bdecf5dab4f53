# Every target works on a bare machine with Python 3.11 or 3.12 and a network; nothing is installed
# outside this folder. Another interpreter: make PYTHON=/path/to/python3.12 setup

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench clean force

PYTHON ?=
VENV := .venv
BENCH_VENV := .bench-venv
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(BENCH_VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
VERSION := import sys; print(sys.version_info[:2])
# $(call version_of,PYTHON): '(3, 12)', or nothing. The braces hush the shell's own "not found" too.
version_of = $(shell { $(1) -c '$(VERSION)'; } 2>/dev/null)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv and install the package in it
	@:

demo: setup ## train a small video model on real clips and sample a video
	$(VENV)/bin/python -m sgm_jax.tools.demo

# A process a core, and a file of tests to each: compiling keeps only one core busy.
PYTEST := $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder

test: setup ## the tests, without the slow ones
	$(PYTEST) -m 'not slow'

test-all: setup ## all tests
	$(PYTEST)

lint: setup ## style and format
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

bench: setup $(BENCH_INSTALLED) ## speed and memory beside PyTorch
	$(VENV)/bin/python -m benchmarks.run
	$(VENV)/bin/python -m benchmarks.adversarial_step
	$(VENV)/bin/python -m benchmarks.logging_cost
	$(VENV)/bin/python -m benchmarks.scaling

clean: ## remove environments and caches, never runs
	rm -rf $(VENV) $(BENCH_VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An interpreter that was asked for and is not the environment's remakes the environment.
ifneq ($(PYTHON),)
ifneq ($(call version_of,$(PYTHON)),$(call version_of,$(VENV)/bin/python))
$(INSTALLED) $(BENCH_INSTALLED): force
endif
endif

# $(call environment,FOLDER): a virtual environment, made anew unless a working one is there.
define environment
	@python=''; \
	for candidate in $(or $(PYTHON),$(1)/bin/python python3.11 python3.12 python3 python); do \
	  if "$$candidate" -c '$(SUITABLE)' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'error: found no Python 3.11 or 3.12 with the venv module$(if $(PYTHON), at PYTHON=$(PYTHON));' \
	    'install one (Debian, Ubuntu: apt install python3.11 python3.11-venv) or name it:' \
	    'make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)' >&2; \
	  exit 1; \
	fi; \
	if [ "$$("$$python" -c '$(VERSION)')" != "$$({ $(1)/bin/python -c '$(VERSION)'; } 2>/dev/null)" ]; then \
	  echo "making $(1) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(1); \
	fi
endef

$(INSTALLED): pyproject.toml requirements.txt
	$(call environment,$(VENV))
	@echo 'installing into $(VENV) (a few minutes the first time)'
	@$(VENV)/bin/python -m pip install -qq -r requirements.txt -e '.[dev,demo]'
	@touch $@

$(BENCH_INSTALLED): benchmarks/requirements.txt
	$(call environment,$(BENCH_VENV))
	@echo 'installing PyTorch and diffusers into $(BENCH_VENV)'
	@$(BENCH_VENV)/bin/python -m pip install -qq -r $<
	@touch $@
