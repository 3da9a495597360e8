#!/bin/sh
# Installs the servers and client libraries that the tests of databases, caches and names use.  Idempotent.
# Starts no service and leaves none behind: RUNLEVEL=1 keeps packages from starting what they install.
set -eu
cd "$(dirname "$0")/.."

missing=""
for need in \
	/usr/lib/postgresql/15/bin/postgres:postgresql \
	/usr/sbin/mariadbd:mariadb-server \
	/usr/bin/redis-server:redis-server \
	/usr/bin/memcached:memcached \
	/usr/sbin/dnsmasq:dnsmasq-base \
	/usr/sbin/unbound:unbound \
	/usr/bin/dig:bind9-dnsutils; do
	[ -x "${need%%:*}" ] || missing="$missing ${need##*:}"
done
if [ -n "$missing" ]; then
	# shellcheck disable=SC2086  # a list of packages
	RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing
fi

python=.venv/bin/python
[ -x "$python" ] || python=python3
"$python" -m pip install -q \
	"psycopg[binary]" asyncpg psycopg2-binary pg8000 PyMySQL asyncmy redis pymemcache pymongo python-tds dnspython

if command -v npm >/dev/null; then
	mkdir -p .cache/databases
	npm install --silent --no-audit --no-fund --prefix .cache/databases pg mysql2 ioredis >/dev/null
fi
