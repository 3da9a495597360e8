"""What `onlooker.light` changes is the whole process, so each test has one of its own."""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_changes_nothing() -> None:
    assert run("import sys, onlooker.light; print('numpy' in sys.modules, 'aiohttp' in sys.modules)") == "False False"


def test_no_authorities_are_read_for_a_client_that_nobody_uses() -> None:
    out = run(
        "import os\n"
        "os.environ['SSL_CERT_DIR'] = '/etc/ssl/certs'\n"
        "before = dict(os.environ)\n"
        "from onlooker.light import import_libraries\n"
        "import_libraries()\n"
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
