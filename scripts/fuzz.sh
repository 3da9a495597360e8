#!/usr/bin/env bash
# Runs fuzz targets for FUZZ_SECONDS (60) each: tests/native/*/fuzz.c by libFuzzer; tests/fuzz/fuzz_*.py by atheris if that
# is installed, else by mutations of the corpus.  `fuzz.sh NAME...` runs these alone, `fuzz.sh --list` names them all.
# Each begins with tests/fuzz/corpus/NAME; what it finds grows in build/fuzz/NAME, and a finding is kept there.
set -euo pipefail

cd "$(dirname "$0")/.."
root=$PWD
seconds=${FUZZ_SECONDS:-60}
flags='-g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all
	-Wno-unknown-attributes -Wno-ignored-attributes -Ibpf'

native() { # NAME SOURCE
	local out=build/fuzz/$1
	mkdir -p "$out/corpus"
	# shellcheck disable=SC2086  # a list of flags
	clang $flags "-I$(dirname "$2")/stubs" "$2" -o "$out/target"
	(cd "$out" && ./target -max_total_time="$seconds" -max_len=8192 -print_final_stats=1 corpus "$root/tests/fuzz/corpus/$1")
}

python() { # NAME SOURCE
	local out=build/fuzz/$1
	mkdir -p "$out/corpus"
	if [ "$1" = db ] || [ -n "${FUZZ_MUTATE:-}" ] || ! .venv/bin/python -c 'import atheris' 2>/dev/null; then
		PYTHONPATH=src:tests .venv/bin/python "$2" "$seconds" # it makes its cases from the golden captures
	else
		PYTHONPATH=src:tests .venv/bin/python "$2" --atheris -max_total_time="$seconds" -max_len=65536 \
			-artifact_prefix="$out/" -print_final_stats=1 "$out/corpus"
	fi
}

declare -A targets=([classify]=tests/native/db/fuzz.c [resp]=tests/native/resp/fuzz.c)
for source in tests/native/http*/fuzz.c; do targets[$(basename "$(dirname "$source")")-kernel]=$source; done
for source in tests/fuzz/fuzz_*.py; do name=${source##*/fuzz_} && targets[${name%.py}]=$source; done

if [ "${1:-}" = --list ]; then
	printf '%s\n' "${!targets[@]}" | sort
	exit
fi
[ $# -gt 0 ] || mapfile -t all < <(printf '%s\n' "${!targets[@]}" | sort)
for name in "${@:-${all[@]}}"; do
	source=${targets[$name]:?"no such target; see --list"}
	printf 'fuzz: %s, %s s\n' "$name" "$seconds"
	case $source in *.c) native "$name" "$source" ;; *) python "$name" "$source" ;; esac
done
