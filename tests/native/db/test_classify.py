"""The classifiers of ``bpf/protocols``, built for the host with sanitizers, on real traffic of every protocol."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.protocols.registry import by_name
from support.recorder import Chunk, load

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden"
PROTOCOLS = ("postgres", "mysql", "tds", "redis", "memcached", "mongodb", "dns")
CAPTURES = sorted(path for name in PROTOCOLS for path in (GOLDEN / name).glob("*.jsonl"))
SWAPPED = 0x100

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2_SETTINGS = bytes.fromhex("000006040000000000000400100000")
TLS_CLIENT = bytes.fromhex("1603010200010001fc0303") + bytes(range(100))
TLS_SERVER = bytes.fromhex("160303007a020000760303") + bytes(range(100))
FOREIGN = (
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    (b"POST /a HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"),
    (b"EHLO mail\r\n", b"220 mail ESMTP ready\r\n"),
    (b"QUIT\r\n", b"+OK bye\r\n"),
    (b"USER marker\r\n", b"+OK\r\n"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"),
    (b"NICK a\r\nUSER a 0 * :a\r\n", b":server 001 a :Welcome\r\n"),
    (b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06client", b"\x20\x02\x00\x00"),
    (b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00\x00\x00\x01\xd4\x00\x0a\x00\x0a\x00\x09\x00\x00\x01\xaf"),
    (
        b"\x00\x00\x00\x1b\x00\x12\x00\x03\x00\x00\x00\x01\x00\x08consumer\x00",
        b"\x00\x00\x01\x1a\x00\x00\x00\x01\x00\x00",
    ),
    (b'{"jsonrpc":"2.0","method":"a"}\n', b'{"jsonrpc":"2.0","result":1}\n'),
    (b"CONNECT {}\r\nPING\r\n", b"INFO {}\r\nPONG\r\n"),
    (b"\x00" * 40, b"\x00" * 40),
    (b"\xff" * 40, b"\xff" * 40),
)


class Classifier:
    """Runs the built program over many cases at once."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, lines: list[str]) -> list[str]:
        done = subprocess.run(
            [self.program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    def verdicts(self, cases: list[tuple[bytes, int, bool]]) -> list[int]:
        """Verdicts of (bytes, guess, datagram)."""
        lines = [f"{len(data)} {int(datagram)} {guess} {data[:32].hex()}" for data, guess, datagram in cases]
        return list(map(int, self.run(lines)))

    def agree(self, pairs: list[tuple[int, int]]) -> list[int]:
        return [int(line.split()[0]) for line in self.run([f"agree {a} {b}" for a, b in pairs])]

    def committed(self, pairs: list[tuple[bytes, bytes]], guesses: tuple[int, int] = (-1, -1)) -> list[int]:
        """What is agreed on for each pair of transfers, client's and server's."""
        first = self.verdicts([(a, guesses[0], False) for a, _ in pairs])
        second = self.verdicts([(b, guesses[1], False) for _, b in pairs])
        return self.agree(list(zip(first, second, strict=True)))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    compiler = shutil.which("clang") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("classify") / "classify"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, Path(__file__).with_name("classify_main.c"), "-o", program], check=True)
    return Classifier(program)


def conversations(path: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    """For each connection the pairs of a transfer and the first one the other way behind it."""
    chunks = load(path)
    for number in sorted({c.connection for c in chunks}):
        yield list(pairs([c for c in chunks if c.connection == number]))


def pairs(chunks: list[Chunk]) -> Iterator[tuple[bytes, bytes]]:
    for index, chunk in enumerate(chunks):
        other = next((c for c in chunks[index + 1 :] if c.from_client != chunk.from_client), None)
        if other is not None:
            yield (chunk.data, other.data) if chunk.from_client else (other.data, chunk.data)


@pytest.mark.parametrize("path", CAPTURES, ids=[p.stem for p in CAPTURES])
@pytest.mark.parametrize("guesses", [(-1, -1), (1, 0)], ids=["side unknown", "side known"])
def test_a_connection_is_recognised_from_its_beginning(
    classifier: Classifier, path: Path, guesses: tuple[int, int]
) -> None:
    number = by_name(path.parent.name).number
    for conversation in conversations(path):
        results = classifier.committed(conversation[:6], guesses)
        first = next(r for r in results if r)
        assert first == number


@pytest.mark.parametrize("path", CAPTURES, ids=[p.stem for p in CAPTURES])
@pytest.mark.parametrize("guesses", [(-1, -1), (1, 0)], ids=["side unknown", "side known"])
def test_joined_anywhere_never_the_wrong_protocol(classifier: Classifier, path: Path, guesses: tuple[int, int]) -> None:
    number = by_name(path.parent.name).number
    everything = [pair for conversation in conversations(path) for pair in conversation]
    for pair, result in zip(everything, classifier.committed(everything, guesses), strict=True):
        assert result & 0xFF in (0, number), (pair[0][:32], pair[1][:32])
    if guesses == (-1, -1) and "compressed" not in path.stem:
        swapped = classifier.committed([(b, a) for a, b in everything])
        assert {r & 0xFF for r in swapped} <= {0, number}
        assert any(r == number | SWAPPED for r in swapped)


@pytest.mark.parametrize("path", CAPTURES, ids=[p.stem for p in CAPTURES])
def test_no_capture_mixed_with_another_commits_to_either_against_its_content(
    classifier: Classifier, path: Path
) -> None:
    mine = [pair for conversation in conversations(path) for pair in conversation][:8]
    crossed: list[tuple[bytes, bytes]] = []
    names: list[int] = []
    for other in CAPTURES:
        if other.parent != path.parent:
            theirs = [pair for conversation in conversations(other) for pair in conversation][:8]
            new = [(a, b) for a, _ in mine for _, b in theirs]
            crossed += new
            names += [by_name(other.parent.name).number] * len(new)
    own = by_name(path.parent.name).number
    for pair, name, result in zip(crossed, names, classifier.committed(crossed), strict=True):
        assert result & 0xFF in (0, own, name), (pair[0][:32], pair[1][:32])


def test_preface_and_handshake_are_left_room_for(classifier: Classifier) -> None:
    assert classifier.committed([(HTTP2_PREFACE, HTTP2_SETTINGS)]) == [2]
    assert classifier.committed([(TLS_CLIENT, TLS_SERVER)]) == [10]
    assert classifier.committed([(TLS_SERVER, TLS_CLIENT)]) == [10 | SWAPPED]


def test_foreign_protocols_are_not_taken_for_ours(classifier: Classifier) -> None:
    for guesses in ((-1, -1), (1, 0)):
        for pair, result in zip(FOREIGN, classifier.committed(list(FOREIGN), guesses), strict=True):
            assert result == 0, pair


def test_a_datagram_is_names_or_nothing(classifier: Classifier) -> None:
    query = bytes.fromhex("1234012000010000000000010161076578616d706c6504746573740000010001")
    answer = bytes.fromhex("1234858000010001000000010161076578616d706c6504746573740000010001")
    verdicts = classifier.verdicts([(query, 1, True), (answer, 0, True), (b"*1\r\n$4\r\nPING\r\n", 1, True)])
    assert verdicts[2] == 0
    assert classifier.agree([(verdicts[0], verdicts[1])]) == [9]
    assert classifier.agree([(verdicts[1], verdicts[0])]) == [9 | SWAPPED]


@settings(max_examples=30, deadline=None)
@given(data=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.binary(min_size=1, max_size=40)), max_size=200))
def test_random_bytes_are_read_within_bounds(classifier: Classifier, data: list[tuple[bytes, bytes]]) -> None:
    if data:
        assert all(0 <= r & 0xFF <= 11 for r in classifier.committed(data))
