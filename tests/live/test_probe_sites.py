"""Probes at the chosen sites see every call exactly once, with its arguments and its return.

Each test counts in the kernel what a program of its own does, and compares with what that program says. Probes are
filtered to the programs started here.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onlooker.attach.registry import ProbeRegistry, ProgramFds, library_attacher
from onlooker.attach.sites import Place
from onlooker.attach.tls import Abi, Direction, TlsCatalog, TlsFunction, TlsKind, TlsLibrary
from onlooker.errors import AttachError
from onlooker.kernel import uprobe
from support.probe_sites.watch import HERE, Counts, Talker, Watch

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="sites are chosen on x86-64"),
]

_LENGTH = 200  # bytes of one message of talk.c
_PERF_EVENTS = uprobe.Features(multi=False, session=False, cookies=True)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the program, a certificate, and a copy of libssl that nobody else has mapped."""
    directory = tmp_path_factory.mktemp("sites")
    subprocess.run(["gcc", "-O2", "-o", directory / "talk", HERE / "talk.c", "-lssl", "-lcrypto"], check=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", directory / "key.pem", "-out",
         directory / "cert.pem", "-subj", "/CN=localhost", "-days", "2"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    listed = subprocess.run(["ldd", directory / "talk"], check=True, capture_output=True, text=True).stdout
    source = next(line.split()[2] for line in listed.splitlines() if "libssl" in line)
    shutil.copy(source, directory / Path(source).name)
    return directory


@pytest.fixture(scope="module")
def features() -> uprobe.Features:
    return uprobe.detect()


@pytest.fixture(scope="module")
def watch(workshop: Path, features: uprobe.Features) -> Iterator[Watch]:
    loaded = Watch(workshop, features)
    yield loaded
    loaded.close()


@pytest.fixture
def talker(workshop: Path) -> Iterator[Talker]:
    started = _talker(workshop)
    yield started
    started.close()


def _talker(workshop: Path) -> Talker:
    return Talker(
        workshop / "talk", workshop / "cert.pem", workshop / "key.pem", {"LD_LIBRARY_PATH": str(workshop)}
    )  # fmt: skip


def _openssl(pid: int) -> TlsLibrary:
    (library,) = [found for found in TlsCatalog().libraries(pid) if found.kind is TlsKind.OPENSSL]
    assert library.visible
    return library


def _data(library: TlsLibrary) -> list[TlsFunction]:
    """What reads and writes, reads first."""
    found = [f for f in library.probes() if f.direction is not Direction.NONE and "sendfile" not in f.name]
    return sorted(found, key=lambda function: function.direction.value)


def _total(watch: Watch, functions: list[TlsFunction], direction: Direction) -> Counts:
    rows = [watch.counts(slot) for slot, function in enumerate(functions) if function.direction is direction]
    return Counts(*(sum(values) for values in zip(*(vars(row).values() for row in rows), strict=True)))


def _assert_exact(watch: Watch, functions: list[TlsFunction], calls: int) -> None:
    for direction in (Direction.READ, Direction.WRITE):
        seen = _total(watch, functions, direction)
        assert (seen.entries, seen.returns, seen.marked, seen.unread) == (calls, calls, calls, 0), direction
        assert seen.moved == calls * _LENGTH
    assert _total(watch, functions, Direction.WRITE).asked == calls * _LENGTH


@pytest.mark.parametrize("command", ["pairs", "extended", "thread"])
def test_every_call_is_seen_once_with_its_bytes(watch: Watch, talker: Talker, command: str) -> None:
    library = _openssl(talker.pid)
    functions = _data(library)
    assert all(function.arguments.is_cheap for function in functions)
    with watch.on(functions, library.open_path, talker.pid):
        _, moved = talker.run(command, 231)
        assert moved == 231 * _LENGTH
        _assert_exact(watch, functions, 231)
    talker.run(command, 50)
    assert _total(watch, functions, Direction.WRITE).entries == 231  # nothing after the links are closed


def test_perf_events_see_the_same(workshop: Path, talker: Talker) -> None:
    watch = Watch(workshop, _PERF_EVENTS)
    library = _openssl(talker.pid)
    functions = _data(library)
    try:
        with watch.on(functions, library.open_path, talker.pid):
            talker.run("pairs", 57)
            _assert_exact(watch, functions, 57)
    finally:
        watch.close()


def test_other_processes_and_children_are_silent(watch: Watch, talker: Talker, workshop: Path) -> None:
    other = _talker(workshop)
    library = _openssl(talker.pid)
    functions = _data(library)
    try:
        with watch.on(functions, library.open_path, talker.pid):
            other.run("pairs", 40)
            _, moved = talker.run("fork", 40)
            assert moved == 40 * _LENGTH  # the child works, with the breakpoints it inherited
            assert _total(watch, functions, Direction.WRITE).entries == 0
            talker.run("pairs", 7)
            _assert_exact(watch, functions, 7)
    finally:
        other.close()


def test_arguments_are_right_at_places_inside_functions(watch: Watch, talker: Talker) -> None:
    """The plain forms by themselves: their cheap places are inside, and only good for arguments."""
    from onlooker.attach.elf import ElfFile
    from onlooker.attach.sites import Need, SiteChooser

    library = _openssl(talker.pid)
    with ElfFile(library.open_path) as elf:
        symbols = elf.find_functions(["SSL_write", "SSL_write_ex"])
        chooser = SiteChooser(elf)
        chosen = {
            name: TlsFunction(
                name, (name,), Direction.WRITE, Abi.COUNT, chooser.choose(symbol, Need.ARGUMENTS, arguments=3)
            )
            for name, symbol in symbols.items()
        }
    for name, command in (("SSL_write", "pairs"), ("SSL_write_ex", "extended")):
        with watch.on([chosen[name]], library.open_path, talker.pid):
            talker.run(command, 33)
            seen = watch.counts(0)
            assert (seen.entries, seen.asked, seen.marked, seen.unread) == (33, 33 * _LENGTH, 33, 0)


def test_a_registry_attaches_and_lets_go_under_load(watch: Watch, talker: Talker, features: uprobe.Features) -> None:
    """Also a hundred times: nothing breaks, and no descriptor stays."""
    library = _openssl(talker.pid)
    programs = ProgramFds(watch.nothing, watch.nothing)
    registry = ProbeRegistry(library_attacher(lambda _: programs, features))
    before = len(os.listdir("/proc/self/fd"))
    assert talker._process.stdin is not None
    talker._process.stdin.write("pairs 200000\n")
    talker._process.stdin.flush()
    for _ in range(100):
        assert registry.watch(talker.pid, [library]) == 1
        registry.forget(talker.pid)
    assert talker._process.stdout is not None
    assert int(talker._process.stdout.readline().split()[1]) == 200000 * _LENGTH
    assert registry.failures == {}
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_the_agent_takes_the_probes_out(workshop: Path, talker: Talker) -> None:
    """A process that holds the links is killed; the watched one goes on, without breakpoints in its code."""
    library = _openssl(talker.pid)
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from support.probe_sites.watch import Watch
from onlooker.attach.tls import TlsCatalog
from onlooker.kernel import uprobe
watch = Watch(Path({str(workshop)!r}), uprobe.detect())
(library,) = TlsCatalog().libraries({talker.pid})
with watch.on(library.probes(), library.open_path, {talker.pid}):
    print("attached", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    place = _data(library)[0].arguments
    try:
        assert holder.stdout.readline() == "attached\n"
        assert _byte_in_memory(talker.pid, library, place.offset) == b"\xcc"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        holder.stdin.close()
        holder.stdout.close()
    deadline = time.monotonic() + 10
    while _byte_in_memory(talker.pid, library, place.offset) == b"\xcc" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _byte_in_memory(talker.pid, library, place.offset) != b"\xcc"
    assert talker.run("pairs", 20)[1] == 20 * _LENGTH


def _byte_in_memory(pid: int, library: TlsLibrary, offset: int) -> bytes:
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            words = line.split()
            if len(words) > 5 and words[5] == library.path and "x" in words[1]:
                begin, start = int(words[0].partition("-")[0], 16), int(words[2], 16)
                with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                    memory.seek(begin + offset - start)
                    return memory.read(1)
    raise AssertionError("the library is not mapped")


def test_probes_without_a_process_are_refused(watch: Watch, talker: Talker, features: uprobe.Features) -> None:
    library = _openssl(talker.pid)
    with pytest.raises(AttachError, match="never to all"):
        uprobe.attach(watch.nothing, library.open_path, [0x1000], pid=0, features=features)
    with pytest.raises(AttachError, match="cannot attach"):
        uprobe.attach(watch.nothing, "/no/such/file", [0x1000], pid=talker.pid, features=features)


# Other programs ----------------------------------------------------------------------------------------------------

_PYTHON = """
import ssl, sys
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(sys.argv[1], sys.argv[2])
a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
one, other = client.wrap_bio(a, b), server.wrap_bio(b, a, server_side=True)
for _ in range(10):
    for end in (one, other):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
print("ready", flush=True)
text = b"onlooker" * 25
for line in sys.stdin:
    for _ in range(int(line)):
        one.write(text)
        assert other.read(4096) == text
    print("done", flush=True)
"""


def test_python(watch: Watch, workshop: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _PYTHON, workshop / "cert.pem", workshop / "key.pem"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        library = _openssl(child.pid)
        functions = _data(library)
        with watch.on(functions, library.open_path, child.pid):
            child.stdin.write("64\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            _assert_exact(watch, functions, 64)
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


_NODE = """
const tls = require('tls'), fs = require('fs'), readline = require('readline');
const options = {cert: fs.readFileSync(process.argv[1]), key: fs.readFileSync(process.argv[2])};
let wanted = 0, got = 0, finish = () => {};
const server = tls.createServer(options, socket => socket.on('data', data => {
  got += data.length;
  if (got === wanted) finish();
}));
server.listen(0, '127.0.0.1', () => {
  const client = tls.connect({port: server.address().port, host: '127.0.0.1', rejectUnauthorized: false}, () => {
    console.log('ready');
    readline.createInterface({input: process.stdin}).on('line', line => {
      const count = Number(line), text = 'onlooker'.repeat(25);
      wanted += count * text.length;
      finish = () => console.log(JSON.stringify({bytes: count * text.length}));
      const next = i => { if (i < count) client.write(text, () => next(i + 1)); };
      next(0);
    }).on('close', () => process.exit(0));
  });
});
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_node(watch: Watch, workshop: Path) -> None:
    """Records may be merged or read in pieces: the bytes are compared, and that none comes from nowhere."""
    child = subprocess.Popen(
        ["node", "-e", _NODE, workshop / "cert.pem", workshop / "key.pem"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        library = _openssl(child.pid)
        functions = _data(library)
        with watch.on(functions, library.open_path, child.pid):
            child.stdin.write("100\n")
            child.stdin.flush()
            expected = json.loads(child.stdout.readline())["bytes"]
            written, read = (_total(watch, functions, direction) for direction in (Direction.WRITE, Direction.READ))
        assert written.moved == read.moved == expected == 100 * _LENGTH
        assert written.marked == 100
        assert written.unread == read.unread == 0
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


_GO = """package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// Grows the stack of the goroutine first, so that the stack check of Read and Write takes its slow path.
func deep(n int, f func()) {
	var room [512]byte
	if n > 0 {
		deep(n-1, f)
	} else {
		f()
	}
	_ = room
}

func main() {
	certificate, err := tls.LoadX509KeyPair(os.Args[1], os.Args[2])
	if err != nil {
		panic(err)
	}
	one, other := net.Pipe()
	client := tls.Client(one, &tls.Config{InsecureSkipVerify: true})
	server := tls.Server(other, &tls.Config{Certificates: []tls.Certificate{certificate}})
	go client.Handshake()
	if err := server.Handshake(); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	text := []byte(strings.Repeat("onlooker", 25))
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var count int
		fmt.Sscan(lines.Text(), &count)
		for i := 0; i < count; i++ {
			go func(i int) { deep(i%40, func() { client.Write(text) }) }(i)
			done := make(chan bool)
			go func() { deep(i%60, func() { io.ReadFull(server, make([]byte, len(text))) }); done <- true }()
			<-done
		}
		fmt.Println("done")
	}
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go toolchain")
def test_go(watch: Watch, workshop: Path) -> None:
    """New goroutines have small stacks, so many calls grow theirs: still each call is seen once."""
    source = workshop / "main.go"
    source.write_text(_GO)
    subprocess.run(
        ["go", "build", "-ldflags=-s -w", "-o", workshop / "talk_go", source], check=True, cwd=workshop,
        env={**os.environ, "GO111MODULE": "off", "GOFLAGS": ""},
    )  # fmt: skip
    child = subprocess.Popen(
        [workshop / "talk_go", workshop / "cert.pem", workshop / "key.pem"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        (library,) = TlsCatalog().libraries(child.pid)
        assert library.kind is TlsKind.GO
        assert library.visible
        functions = _data(library)
        with watch.on(functions, library.open_path, child.pid):
            child.stdin.write("300\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            seen = {f.abi.value + f.direction.value: watch.counts(slot) for slot, f in enumerate(functions)}
        write, read, copy = seen["go_slicewrite"], seen["go_sliceread"], seen["go_copyread"]
        assert (write.entries, write.asked, write.marked) == (300, 300 * _LENGTH, 300)
        assert read.entries == 300
        assert (copy.entries, copy.asked, copy.marked, copy.unread) == (300, 300 * _LENGTH, 300, 0)
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


_GNUTLS = """
import ctypes, sys
curl = ctypes.CDLL("libcurl-gnutls.so.4")
curl.curl_easy_init.restype = ctypes.c_void_p
print("ready", file=sys.stderr, flush=True)
count = int(sys.stdin.readline())
for _ in range(count):
    handle = ctypes.c_void_p(curl.curl_easy_init())
    for option, value in ((10002, sys.argv[1].encode()), (64, ctypes.c_long(0)), (81, ctypes.c_long(0))):
        curl.curl_easy_setopt(handle, option, value)  # URL, SSL_VERIFYPEER, SSL_VERIFYHOST
    assert curl.curl_easy_perform(handle) == 0
    curl.curl_easy_cleanup(handle)
print("done", file=sys.stderr, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not ctypes.util.find_library("curl-gnutls"), reason="no curl with GnuTLS")
def test_gnutls(watch: Watch, workshop: Path) -> None:
    """A client with GnuTLS asks a server of ours, which counts the plaintext."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(workshop / "cert.pem", workshop / "key.pem")
    response = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
    received: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(12):
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True) as connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                received.append(len(request))
                connection.sendall(response)

    thread = threading.Thread(target=serve)
    thread.start()
    child = subprocess.Popen(
        [sys.executable, "-c", _GNUTLS, f"https://127.0.0.1:{listener.getsockname()[1]}/"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stderr is not None
    try:
        assert child.stderr.readline() == "ready\n"
        (library,) = [found for found in TlsCatalog().libraries(child.pid) if found.kind is TlsKind.GNUTLS]
        functions = _data(library)
        with watch.on(functions, library.open_path, child.pid):
            child.stdin.write("12\n")
            child.stdin.flush()
            assert child.stderr.readline() == "done\n"
            written, read = (_total(watch, functions, direction) for direction in (Direction.WRITE, Direction.READ))
        thread.join(10)
        assert (written.moved, len(received)) == (sum(received), 12)
        assert read.moved == 12 * len(response)
        assert written.unread == read.unread == 0
    finally:
        child.stdin.close()
        child.wait(10)
        child.stderr.close()
        listener.close()


# Price -------------------------------------------------------------------------------------------------------------


def test_the_price_is_printed(watch: Watch, talker: Talker, workshop: Path, features: uprobe.Features) -> None:
    """No assertion on speed: rounds of each way in one run, medians printed."""
    from onlooker.attach.elf import ElfFile

    library = _openssl(talker.pid)
    functions = _data(library)
    with ElfFile(library.open_path) as elf:
        offsets = {name: elf.offset_of(s.address) for name, s in elf.find_functions(["SSL_read", "SSL_write"]).items()}
    read, write = offsets["SSL_read"], offsets["SSL_write"]
    assert read is not None
    assert write is not None
    others = [_talker(workshop) for _ in range(8)]
    chosen = [(f.arguments.offset, False) for f in functions] + [
        (f.returns.offset, True) for f in functions if f.returns is not None
    ]

    session = Watch(workshop, features, uprobe.ATTACH_UPROBE_SESSION) if features.session else None

    def attached(places: list[tuple[int, bool]], pids: list[int]) -> list[uprobe.UprobeLink]:
        if not places:
            assert session is not None
            offsets = [function.arguments.offset for function in functions]
            return [
                uprobe.attach(session.nothing, library.open_path, offsets, pid=pid, features=features, session=True)
                for pid in pids
            ]
        return [
            uprobe.attach(watch.nothing, library.open_path, [at], pid=pid, features=features, returns=returns)
            for pid in pids
            for at, returns in places
        ]

    ways = {
        "chosen sites, entry and return of both": (chosen, [talker.pid]),
        "write at its entry, read at entry and return": ([(write, False), (read, False), (read, True)], [talker.pid]),
        "not selected, another process is": (chosen, [others[0].pid]),
        "selected, and 8 other processes too": (chosen, [talker.pid, *(other.pid for other in others)]),
    }
    if session is not None:
        ways["chosen sites, sessions"] = ([], [talker.pid])
        ways["sessions, and 8 other processes too"] = ([], [talker.pid, *(other.pid for other in others)])
    added: dict[str, list[float]] = {name: [] for name in ways}
    base: list[float] = []
    try:
        for _ in range(5):
            for name, (places, pids) in ways.items():
                before = talker.run("pairs", 400)[0]
                links = attached(places, pids)
                talker.run("pairs", 20)
                added[name].append(talker.run("pairs", 400)[0] - before)
                for link in links:
                    link.close()
                base.append(before)
    finally:
        for other in others:
            other.close()
        if session is not None:
            session.close()
    print(f"\nOpenSSL write and read of {_LENGTH} bytes: {statistics.median(base):.0f} ns; added by empty programs:")
    for name, values in added.items():
        print(f"  {name}: {statistics.median(values):+.0f} ns ({min(values):+.0f} .. {max(values):+.0f})")
    assert all(function.arguments.place is not Place.ENTRY or function.arguments.is_cheap for function in functions)
