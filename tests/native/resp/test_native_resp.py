"""The walker of ``bpf/protocols/resp.h``, built for the host with sanitizers, on made-up and recorded traffic."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.recorder import load

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "golden" / "redis"
START, LOST = 0, 4
TOLD, UNPAIRED = 1, 2


@dataclass(frozen=True)
class Known:
    state: int
    messages: int
    errors: int
    named: int
    mixed: int
    special: int
    skip: int
    left: int
    carried: int
    name: bytes
    error: bytes


class Walker:
    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, transfers: list[bytes], *, requests: bool, room: int = 4000) -> Known:
        lines = [f"{int(requests)} {room}", *(f"{len(data)} {data.hex()}" for data in transfers)]
        done = subprocess.run(
            [self.program], input="\n".join(lines) + "\n", capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr[-2000:]
        words = done.stdout.splitlines()[-1].split()
        name, error = (bytes.fromhex(word).rstrip(b"\0") for word in words[9:])
        return Known(*map(int, words[:9]), name, error)


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Walker:
    compiler = shutil.which("clang") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("resp") / "walk"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize=alignment",
             "-fno-sanitize-recover=all"]  # fmt: skip
    subprocess.run([compiler, *flags, HERE / "walk.c", "-o", program], check=True)
    return Walker(program)


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


BYTES = st.binary(max_size=40) | st.just(b"\r\n*1\r\n$4\r\nPING\r\n") | st.binary(min_size=1000, max_size=1400)
LEAF = st.one_of(
    st.sampled_from([b"+OK\r\n", b"+QUEUED\r\n", b"$-1\r\n", b"*-1\r\n", b":1000\r\n", b":-7\r\n", b"_\r\n", b"#t\r\n",
                     b",3.25\r\n", b"(123456789012345678901\r\n", b"*0\r\n", b"+" + b"x" * 90 + b"\r\n"]),
    BYTES.map(lambda data: b"$%d\r\n%s\r\n" % (len(data), data)),
    st.just(b"=15\r\ntxt:Some string\r\n"),
)  # fmt: skip
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda v: b"*%d\r\n" % len(v) + b"".join(v)),
        st.lists(inner, max_size=4).map(lambda v: b"~%d\r\n" % len(v) + b"".join(v)),
        st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda v: b"%%%d\r\n" % len(v) + b"".join(a + b for a, b in v)
        ),
    ),
    max_leaves=6,
)
ERROR = st.sampled_from([b"-ERR no\r\n", b"-WRONGTYPE Operation against a key\r\n", b"!5\r\nERR x\r\n"])
PUSH = st.lists(LEAF, min_size=1, max_size=3).map(lambda v: b">%d\r\n" % len(v) + b"".join(v))
ATTRIBUTE = st.tuples(LEAF, LEAF, VALUE).map(lambda v: b"|1\r\n" + b"".join(v))
PLACES = st.lists(st.integers(0, 1 << 16), max_size=12)
ROOMS = st.sampled_from([60, 300, 4000])


@given(
    values=st.lists(st.one_of(VALUE, ERROR, PUSH, ATTRIBUTE), max_size=30),
    places=PLACES,
    room=ROOMS,
    times=st.integers(1, 9),
)
@settings(deadline=None, max_examples=150)
def test_replies_are_counted(walker: Walker, values: list[bytes], places: list[int], room: int, times: int) -> None:
    values = [value for value in values for _ in range(times)][:200]
    found = walker.run([b"", *cut(b"".join(values), places)], requests=False, room=room)
    assert (found.state, found.carried, found.skip) == (START, 0, 0)
    assert found.messages == sum(value[:1] != b">" for value in values)
    assert found.errors == sum(value[:1] in (b"-", b"!") for value in values)


NAMES = (b"GET", b"set", b"HINCRBYFLOAT", b"Ping", b"JSON.SET", b"xadd", b"A" * 16)


@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    arguments=st.lists(st.lists(BYTES, max_size=4), min_size=1, max_size=8),
    places=PLACES, room=ROOMS, times=st.integers(1, 9),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_commands_are_counted_and_named(
    walker: Walker, names: list[bytes], arguments: list[list[bytes]], places: list[int], room: int, times: int
) -> None:
    sent = [
        command(names[turn % len(names)], *words) for turn, words in enumerate(arguments) for _ in range(times)
    ][:200]  # fmt: skip
    used = [names[turn % len(names)].upper() for turn in range(len(arguments))][: -(-len(sent) // times)]
    found = walker.run(cut(b"".join(sent), places), requests=True, room=room)
    assert (found.state, found.carried, found.skip) == (START, 0, 0)
    assert found.messages == len(sent)
    assert found.name == used[-1]
    assert (found.named, found.mixed, found.special) == (1, int(len(set(used)) > 1), 0)


@pytest.mark.parametrize(
    ("name", "special"),
    [(b"select", TOLD), (b"CLIENT", TOLD), (b"XREADGROUP", TOLD), (b"SUBSCRIBE", TOLD | UNPAIRED), (b"monitor", 3),
     (b"PUNSUBSCRIBE", 3), (b"psync", 3), (b"SELECTED", 0), (b"GET", 0), (b"CLIENTS", 0)],
)  # fmt: skip
def test_what_changes_how_the_connection_is_read_is_marked(walker: Walker, name: bytes, special: int) -> None:
    assert walker.run([command(b"GET", b"k") + command(name, b"1")], requests=True).special == special


@pytest.mark.parametrize(
    "data",
    [b"PING\r\n",
     b"*0\r\n", b"*-1\r\n", b"*1\r\n+PING\r\n", b"*1\r\n$0\r\n\r\n", b"*1\r\n$-1\r\n", b"*x\r\n", b"\0" * 50,
     b"*99999999999\r\n", b"*2\r\n$3\r\nGET\r\n*1\r\n$1\r\na\r\n", b"*1\r\n$4a\r\nPING\r\n", b"*\r\n$1\r\na\r\n"],
)  # fmt: skip
def test_what_is_no_command_is_not_followed(walker: Walker, data: bytes) -> None:
    assert walker.run([data, command(b"GET", b"k")], requests=True).state == LOST


def test_a_name_that_is_too_long_is_not_told_apart(walker: Walker) -> None:
    found = walker.run([command(b"A" * 17, b"k")], requests=True)
    assert (found.messages, found.named, found.mixed) == (1, 0, 1)


def test_the_first_error_is_kept(walker: Walker) -> None:
    found = walker.run([b"+OK\r\n-WRONGTYPE a\r\n-ERR b\r\n"], requests=False)
    assert (found.messages, found.errors, found.error[:10]) == (3, 2, b"-WRONGTYPE")


def test_strings_are_stepped_over_unread(walker: Walker) -> None:
    """A length is believed: the bytes behind it are not looked at."""
    size = 3_000_000
    head = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % size
    found = walker.run([head, b"x" * 100], requests=True)
    assert (found.messages, found.skip) == (0, size + 2 - 100)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.jsonl")), ids=lambda path: path.stem)
def test_recorded_connections(walker: Walker, path: Path) -> None:
    """Replies answer commands one by one, unless a connection subscribes or talks otherwise."""
    chunks = load(path)
    for number in sorted({c.connection for c in chunks}):
        mine = [c for c in chunks if c.connection == number]
        asked = walker.run([c.data for c in mine if c.from_client] or [b""], requests=True)
        told = walker.run([c.data for c in mine if not c.from_client] or [b""], requests=False)
        if asked.state == START and not asked.special:
            assert (told.state, told.messages) == (START, asked.messages), path.name
