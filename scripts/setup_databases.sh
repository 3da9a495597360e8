#!/usr/bin/env bash
# Installs the servers of the tests of databases, caches and names, and builds their clients into build/databases.
# Safe to run again: what is there and was made from the same sources is left alone.  No service is started or enabled.
set -euo pipefail

cd "$(dirname "$0")/.."
sources=$PWD/tests/live/databases
out=$PWD/build/databases
mkdir -p "$out/stamps" "$out/logs"
export PATH=$PWD/build/node/bin:$PATH:/usr/sbin:/usr/local/go/bin

say() { printf 'databases: %s\n' "$*"; }

# step NAME FILES... -- COMMAND...: runs the command unless NAME was made from the same FILES, recipe and tools.
step() {
	local name=$1 files=() log stamp
	shift
	while [ "$1" != -- ]; do files+=("$1"); shift; done
	shift
	stamp=$({ cat "${files[@]}"; declare -f "$1"; } | sha256sum)
	[ -e "$out/stamps/$name" ] && [ "$(cat "$out/stamps/$name")" = "$stamp" ] && return 0
	say "$name"
	log=$out/logs/$name.log
	if ! ("$@") >"$log" 2>&1; then
		echo "databases: $name failed:" >&2
		tail -n 40 "$log" >&2
		return 1
	fi
	printf '%s' "$stamp" >"$out/stamps/$name"
}

# ---- Debian packages: only those whose command or file is missing -------------------------------------------------

missing=()
need() { # need PACKAGE COMMAND-OR-FILE...
	local package=$1 thing
	shift
	for thing in "$@"; do
		if [[ $thing == /* ]]; then compgen -G "$thing" >/dev/null && return 0; else command -v "$thing" >/dev/null && return 0; fi
	done
	missing+=("$package")
}

need postgresql '/usr/lib/postgresql/*/bin/postgres'
need mariadb-server mariadbd
need mariadb-client mariadb
need redis-server redis-server
need redis-tools redis-benchmark
need memcached memcached
need dnsmasq-base dnsmasq
need unbound unbound
need bind9-dnsutils dig
need iproute2 ip
need golang-go go
need default-jdk-headless javac
need maven mvn
# mysqlclient has no wheels
need gcc gcc cc
need python3-dev "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h"
need libmariadb-dev /usr/include/mariadb/mysql.h
need pkg-config pkg-config

if [ ${#missing[@]} -gt 0 ]; then
	say "apt-get install ${missing[*]}"
	policy=/usr/sbin/policy-rc.d
	kept=
	if [ -e "$policy" ]; then kept=$(mktemp) && cp -p "$policy" "$kept"; fi
	# The tests start servers of their own: no service may be started by an installation, or at the next boot.
	printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
	restore() { if [ -n "$kept" ]; then mv "$kept" "$policy"; else rm -f "$policy"; fi; }
	trap restore EXIT
	install_packages() {
		export DEBIAN_FRONTEND=noninteractive
		apt-get -o DPkg::Lock::Timeout=600 update -qq
		apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${missing[@]}"
	}
	if ! install_packages >"$out/logs/apt.log" 2>&1; then
		tail -n 40 "$out/logs/apt.log" >&2
		exit 1
	fi
	restore
	trap - EXIT
	for service in postgresql mariadb redis-server memcached unbound; do
		case " ${missing[*]} " in *" $service"*)
			update-rc.d "$service" disable >/dev/null 2>&1 || true
			[ ! -d /run/systemd/system ] || systemctl disable -q --now "$service" 2>/dev/null || true
			;;
		esac
	done
fi

# ---- clients ------------------------------------------------------------------------------------------------------

python_packages() {
	# beside pytest, because the recorder of golden captures is driven by them too
	.venv/bin/python -m pip install -q --disable-pip-version-check -r "$sources/python/requirements.txt"
}
.venv/bin/python -c 'import psycopg, asyncpg, MySQLdb, asyncmy, redis, pymongo, pytds' 2>/dev/null || rm -f "$out/stamps/python"
step python "$sources/python/requirements.txt" -- python_packages

node_packages() {
	mkdir -p "$out/node"
	cp "$sources/node/package.json" "$out/node/"
	npm install --prefix "$out/node" --no-package-lock --no-audit --no-fund --omit=dev --loglevel=error
}
step node "$sources/node/package.json" -- node_packages

go_program() {
	# Built from a copy: the sums that go writes belong to this machine's choice of versions.
	mkdir -p "$out/go"
	cp "$sources"/go/* "$out/go/"
	cd "$out/go"
	GOFLAGS=-mod=mod GOTOOLCHAIN=local go mod tidy
	GOFLAGS=-mod=mod GOTOOLCHAIN=local CGO_ENABLED=0 go build -o "$out/databases" .
}
step go "$sources"/go/go.mod "$sources"/go/main.go -- go_program

java_program() {
	mvn -q -B -f "$sources/java/pom.xml" dependency:copy-dependencies -DoutputDirectory="$out/java/lib"
	mkdir -p "$out/classes"
	javac -d "$out/classes" -cp "$out/java/lib/*" "$sources/java/Client.java"
}
step java "$sources/java/pom.xml" "$sources/java/Client.java" -- java_program

# MongoDB's own server is in no registry; FerretDB, which speaks its protocol, is, as source.
ferretdb() {
	local version=v1.24.0 module=$out/ferretdb-src/module
	mkdir -p "$out/ferretdb-src"
	cd "$out/ferretdb-src"
	printf 'module ferretdb\n\ngo 1.22\n\nrequire github.com/FerretDB/FerretDB %s\n' "$version" >go.mod
	rm -rf "$module"
	cp -r "$(GOTOOLCHAIN=local go mod download -json github.com/FerretDB/FerretDB@$version | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')" "$module"
	chmod -R u+w "$module"
	for file in version branch commit package; do echo unknown >"$module/build/version/$file.txt"; done
	echo $version >"$module/build/version/version.txt"
	echo 'replace github.com/FerretDB/FerretDB => ./module' >>go.mod
	GOFLAGS=-mod=mod GOTOOLCHAIN=local CGO_ENABLED=0 go build -tags ferretdb_no_postgresql,ferretdb_no_mysql \
		-o "$out/ferretdb" github.com/FerretDB/FerretDB/cmd/ferretdb
}
step ferretdb /dev/null -- ferretdb
