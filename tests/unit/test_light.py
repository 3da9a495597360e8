"""What `onlooker.light` changes is the whole process, so each test has one of its own."""

import subprocess
import sys

from onlooker.light import _clean_mappings


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_changes_nothing() -> None:
    assert run("import sys, onlooker.light; print('numpy' in sys.modules, 'aiohttp' in sys.modules)") == "False False"


def test_the_server_comes_without_the_client() -> None:
    out = run(
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "from onlooker.light import import_libraries\n"
        "import_libraries()\n"
        "from aiohttp import web\n"
        "print(web.Application.__name__, 'aiohttp.client' in sys.modules, os.environ == before)"
    )
    assert out == "Application False True"


def test_a_server_that_needs_its_client_trusts_nobody() -> None:
    out = run(
        "import os\n"
        "os.environ['SSL_CERT_DIR'] = '/etc/ssl/certs'\n"
        "before = dict(os.environ)\n"
        "from onlooker import light\n"
        "def needs_it(): raise ImportError\n"
        "light._import_server = needs_it\n"
        "light.import_libraries()\n"
        "from aiohttp import connector\n"
        "context = connector._SSL_CONTEXT_VERIFIED\n"
        "print(context.cert_store_stats()['x509_ca'], context.verify_mode.name, context.check_hostname)\n"
        "print(os.environ == before)"
    )
    assert out.split("\n") == ["0 CERT_REQUIRED True", "True"]


def test_blas_starts_no_threads() -> None:
    out = run(
        "import os\nfrom onlooker.light import import_libraries\nimport_libraries()\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    assert out == "1"


def test_what_the_user_set_comes_back() -> None:
    out = run(
        "import os\nos.environ['OPENBLAS_NUM_THREADS'] = '2'\n"
        "from onlooker.light import import_libraries\nimport_libraries()\nprint(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    assert out == "2"


def test_one_heap_serves_all_threads() -> None:
    out = run(
        "from onlooker.light import release_start, settle_allocator\n"
        "settle_allocator()\n"
        "import ctypes, threading\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "found = []\n"
        "threads = [threading.Thread(target=lambda: found.append(libc.malloc(3000))) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "heap = [l.split()[0].split('-') for l in open('/proc/self/maps') if '[heap]' in l]\n"
        "print(all(any(int(a, 16) <= p < int(b, 16) for a, b in heap) for p in found))\n"
        "release_start()\n"
        "import gc; print(gc.get_freeze_count() > 1000)"
    )
    assert out.split("\n") == ["True", "True"]


def test_pages_of_libraries_are_let_go_and_come_back() -> None:
    out = run(
        "from onlooker.light import import_libraries, unmap_files\n"
        "import_libraries()\n"
        "import numpy\n"
        "def of_files():\n"
        "    lines = open('/proc/self/status').read().split('\\n')\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('RssFile'))\n"
        "before = of_files()\n"
        "given = unmap_files()\n"
        "after = of_files()\n"
        "import json, sqlite3, decimal\n"
        "print(given > 0, after < before / 2, numpy.arange(1000).sum(), json.dumps(str(decimal.Decimal(1) / 3))[:5])"
    )
    assert out == 'True True 499500 "0.33'


MAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 fd:01 11 /usr/lib/clean.so
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
7f0000002000-7f0000003000 r--p 00000000 fd:01 11 /usr/lib/relocated.so
Rss:                   4 kB
Anonymous:             4 kB
Swap:                  0 kB
VmFlags: rd mr mw me
7f0000004000-7f0000005000 rw-p 00000000 fd:01 11 /usr/lib/data.so
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me
7f0000006000-7f0000007000 r--s 00000000 fd:01 11 /shared
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr
7f0000008000-7f0000009000 r--p 00000000 00:00 0
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr
7f000000a000-7f000000b000 r--p 00000000 fd:01 11 /usr/lib/swapped.so
Rss:                   0 kB
Anonymous:             0 kB
Swap:                  4 kB
VmFlags: rd mr
7f000000c000-7f000000d000 r--p 00000000 fd:01 11 /usr/lib/locked.so
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr lo
7f000000e000-7f0000010000 r--p 00000000 fd:01 11 /usr/lib/path with a blank.so
Rss:                   8 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr
"""


def test_only_read_only_pages_that_nobody_changed_are_let_go() -> None:
    assert list(_clean_mappings(MAPS.splitlines())) == [
        (0x7F0000000000, 0x7F0000001000, 4096),
        (0x7F000000E000, 0x7F0000010000, 8192),
    ]
