# What a fresh Debian machine needs is installed by `make setup`; every other target begins with it.
SHELL := /bin/bash
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
ARCH := $(shell uname -m | sed 's/x86_64/x86/; s/aarch64/arm64/')
CLANG ?= clang
BPF_ARCH ?= $(ARCH)
BPF_OUT := build/bpf/$(BPF_ARCH)
BPF_SOURCES := $(wildcard bpf/*.bpf.c)
BPF_HEADERS := $(wildcard bpf/*.h bpf/lib/*.h bpf/protocols/*.h)
BPF_PARTS := $(BPF_SOURCES:bpf/%.bpf.c=$(BPF_OUT)/%.part.o)
BPF_OBJECT := src/onlooker/kernel/onlooker-$(BPF_ARCH).bpf.o
# v2: what the oldest kernel's verifier takes (v3 brings 32-bit jumps and atomics that 5.10 lacks).
BPF_FLAGS := -O2 -g -target bpf -mcpu=v2 -D__TARGET_ARCH_$(BPF_ARCH) -Wall -Wextra -Werror \
	-Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare -Ibpf

.PHONY: bpf
bpf: $(BPF_OBJECT)

$(BPF_OUT)/%.part.o: bpf/%.bpf.c $(BPF_HEADERS)
	@mkdir -p $(@D)
	$(CLANG) $(BPF_FLAGS) -c $< -o $@

# One object for all kernels: the parts are linked, so that they share maps and globals.
$(BPF_OBJECT): $(BPF_PARTS)
	@mkdir -p $(@D)
	PATH=$$PATH:/usr/sbin bpftool gen object $@ $^
	llvm-strip -g $@ 2>/dev/null || $$(ls -d /usr/lib/llvm-*/bin | tail -1)/llvm-strip -g $@
