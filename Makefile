# onlooker's commands.  What a fresh Debian machine lacks is installed by `make setup`, which the others begin with.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
ARCH := $(shell uname -m | sed 's/x86_64/x86/; s/aarch64/arm64/')
CLANG ?= clang
BPF_ARCH ?= $(ARCH)
BPF_OUT := build/bpf/$(BPF_ARCH)
BPF_SOURCES := $(wildcard bpf/*.bpf.c)
BPF_HEADERS := $(wildcard bpf/*.h bpf/lib/*.h bpf/protocols/*.h bpf/hooks/*.h)
BPF_PARTS := $(patsubst bpf/%.bpf.c,$(BPF_OUT)/%.part.o,$(filter-out bpf/calibrate.bpf.c,$(BPF_SOURCES)))
BPF_OBJECT := src/onlooker/kernel/onlooker-$(BPF_ARCH).bpf.o
BPF_OLD_PARTS := $(BPF_SOURCES:bpf/%.bpf.c=$(BPF_OUT)/%.old.o)
BPF_OLD_OBJECT := src/onlooker/kernel/onlooker-$(BPF_ARCH)-old.bpf.o
BPF_FLAGS := -O2 -g -target bpf -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Wextra -Werror \
	-Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare -Ibpf
# v3 has 32-bit arithmetic, and 5 % fewer instructions run; v2 is what the oldest kernel's verifier takes (5.10 lacks atomics).
BPF_NEW := -mcpu=v3
BPF_OLD := -mcpu=v2 -DONLOOKER_OLD_KERNEL

# eBPF needs root; who is not gets it for the one command that needs it.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
PYTEST := $(PY) -m pytest

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

# ---- set-up and running ----

.PHONY: setup demo-setup run clean
setup: ## install what is missing, build, and leave .venv/bin/onlooker
	@scripts/setup.sh $(if $(wildcard web/package.json),web)
	@$(MAKE) --no-print-directory -s bpf web

demo-setup: setup ## the programs of the demo
	@scripts/setup.sh demo

# ARGS="--open-port 8080" watches a service of yours and starts no demo.
run: $(if $(ARGS),setup,demo-setup) ## the live table on the demo shop; ARGS="--open-port 8080" for your own service
	@$(if $(ARGS),,echo "The demo shop starts on http://127.0.0.1:8080/ or near (log: build/demo/demo.log). Ctrl-C ends it all.")
	@$(AS_ROOT) $(VENV)/bin/onlooker run $(if $(ARGS),$(ARGS),$(RUN_ARGS) -- $(PY) demo/supervisor.py)

clean: ## remove what was built, not what was installed
	rm -rf build dist $(BPF_OBJECT) $(BPF_OLD_OBJECT)

# ---- the kernel side ----

.PHONY: bpf
bpf: $(BPF_OBJECT) $(BPF_OLD_OBJECT) ## build the BPF objects of this machine

$(BPF_OUT)/%.part.o: bpf/%.bpf.c $(BPF_HEADERS)
	@mkdir -p $(@D)
	$(CLANG) $(BPF_FLAGS) $(BPF_NEW) -c $< -o $@

$(BPF_OUT)/%.old.o: bpf/%.bpf.c $(BPF_HEADERS)
	@mkdir -p $(@D)
	$(CLANG) $(BPF_FLAGS) $(BPF_OLD) -c $< -o $@

# Two objects of the same sources, see docs/decisions/0340: the parts of each are linked, so that they share maps and globals.
$(BPF_OBJECT): $(BPF_PARTS)
$(BPF_OLD_OBJECT): $(BPF_OLD_PARTS)
$(BPF_OBJECT) $(BPF_OLD_OBJECT):
	@mkdir -p $(@D)
	PATH=$$PATH:/usr/sbin bpftool gen object $@ $^
	llvm-strip -g $@ 2>/dev/null || $$(ls -d /usr/lib/llvm-*/bin | tail -1)/llvm-strip -g $@

# ---- the page ----

WEB_SOURCES := $(shell find web -type f -not -path '*/node_modules/*' -not -path '*/dist/*' 2>/dev/null)
WEB_STAMP := build/stamps/web

.PHONY: web
web: $(if $(wildcard web/package.json),$(WEB_STAMP)) ## build the page

$(WEB_STAMP): $(WEB_SOURCES)
	@mkdir -p $(@D)
	@echo "web: npm ci, npm run build"
	@cd web && export PATH="$(CURDIR)/build/node/bin:$$PATH" && { npm ci --no-audit --no-fund --loglevel=error && npm run --silent build; } \
		>../build/web.log 2>&1 || { tail -n 40 ../build/web.log >&2; exit 1; }
	@touch $@

# ---- generated files ----

.PHONY: generate golden
generate: setup ## records, semantic conventions and reference tables, from what they are made of
	$(PY) scripts/gen_records.py $(BPF_OBJECT) src/onlooker/capture/_records.py
	$(PY) scripts/gen_semconv.py
	$(PY) scripts/gen_reference.py

golden: test-setup ## record the golden captures anew; read the difference before it is committed
	@bash scripts/setup_databases.sh
	cd tests && for recorder in golden/record_*.py golden/*/record.py; do \
		module=$${recorder%.py}; PYTHONPATH=../src ../$(PY) -m "$${module//\//.}" || exit 1; \
	done

# ---- tests ----

.PHONY: check test test-live test-setup fuzz test-kernels test-hosts bench bench-suite bench-count bench-hold count-suite
check: setup ## format, lint, types and unit tests: under two minutes
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTEST) tests/unit -q -m "not slow" -n auto

test-setup: demo-setup
	@scripts/setup.sh test
	@bash scripts/setup_zoo.sh

# What else is live takes more servers, clients and time: `make test-live`.
LIVE_GATE := awkward discovery_identity servers otlp_real exporter_faults kill9 privileges wrk
TEST_PATHS := tests/unit tests/native tests/golden tests/fuzz $(LIVE_GATE:%=tests/live/test_%.py)
TEST := $(AS_ROOT) env CI=$(CI) PATH="$$PATH:/usr/sbin:/usr/local/go/bin" $(PYTEST)

test: test-setup ## unit, native and golden tests, and the live ones of HTTP, discovery, exporters and privileges (root)
	$(TEST) $(TEST_PATHS) $(TEST_ARGS)

test-live: test-setup ## every live test: clients, TLS, gRPC, databases, page, churn, torture too (root; an hour)
	@bash scripts/setup_zoo.sh live && bash scripts/setup_databases.sh
	$(TEST) tests/live $(TEST_ARGS)

FUZZ_SECONDS ?= 400
fuzz: setup ## drive the parsers with libFuzzer and atheris; FUZZ_SECONDS=400 for each of ten targets: an hour
	@scripts/setup.sh test
	FUZZ_SECONDS=$(FUZZ_SECONDS) bash scripts/fuzz.sh

bench-hold: test-setup ## fail if a request to nginx costs 5 % more instructions than written down
	$(AS_ROOT) env PATH="$$PATH:/usr/sbin" $(PY) benchmarks/bench_count.py --hold benchmarks/counts.json

count-suite: test-setup ## instructions a request of nginx, Node, uvicorn, Go, PostgreSQL, beside a tracer of system calls
	$(AS_ROOT) env PATH="$$PATH:/usr/sbin:/usr/local/go/bin" $(PY) benchmarks/suite/count.py $(ARGS)

test-kernels: setup ## load and run on five kernels in virtual machines; ARGS="--kernel 6.1", ARGS=--update
	@scripts/setup.sh test
	$(AS_ROOT) $(PY) tests/kernels/run.py $(ARGS)

test-hosts: test-setup ## unusual hosts: clock steps, processors that go, used pids, hidden /proc, lockdown, containers
	$(TEST) tests/kernels/test_hosts.py tests/kernels/test_unusual.py $(TEST_ARGS)

bench: test-setup ## cost on this machine, as ratios within one run: nginx (ARGS=...), then all services
	$(AS_ROOT) $(PY) benchmarks/bench.py $(ARGS); $(MAKE) --no-print-directory bench-suite ARGS="$(filter --quick,$(ARGS))"

bench-suite: test-setup ## nginx, Node, uvicorn, Go, PostgreSQL, beside a tracer of system calls; starts beside 2,000 processes
	$(AS_ROOT) env PATH="$$PATH:/usr/sbin:/usr/local/go/bin" $(PY) benchmarks/suite/run.py $(ARGS)

bench-count: test-setup ## instructions a request, in the counting machine
	$(AS_ROOT) $(PY) benchmarks/bench_count.py $(ARGS)
