#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS (60): tests/native/*/fuzz.c by libFuzzer, tests/fuzz/*.py by atheris if that is
# installed.  Corpora grow in build/fuzz; a finding is kept there, and ends the run.
set -euo pipefail

cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
flags='-g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all
	-Wno-unknown-attributes -Wno-ignored-attributes -Ibpf'

for source in tests/native/*/fuzz.c; do
	name=$(basename "$(dirname "$source")")
	mkdir -p "build/fuzz/$name/corpus"
	printf 'fuzz: %s, %s s\n' "$name" "$seconds"
	# shellcheck disable=SC2086  # a list of flags
	clang $flags "-I$(dirname "$source")/stubs" "$source" -o "build/fuzz/$name/target"
	(cd "build/fuzz/$name" && ./target -max_total_time="$seconds" -max_len=8192 -print_final_stats=1 corpus)
done

if .venv/bin/python -c 'import atheris' 2>/dev/null; then
	for source in tests/fuzz/fuzz_*.py; do
		name=$(basename "$source" .py)
		mkdir -p "build/fuzz/$name"
		printf 'fuzz: %s, %s s\n' "$name" "$seconds"
		PYTHONPATH=src:tests .venv/bin/python "$source" -max_total_time="$seconds" "build/fuzz/$name"
	done
else
	echo 'fuzz: atheris is not installed; the parsers in Python are driven by hypothesis in tests/unit/protocols'
fi
