"""The frame walker of ``bpf/protocols/http2.h``, built for the host with sanitizers, against its reader."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from onlooker.protocols import Segment
from onlooker.protocols import _http2_frames as frames
from onlooker.protocols.http2 import REQUEST_MESSAGES, RESPONSE_MESSAGES, Http2
from support.byte_recording import Capture
from support.http2_replay import Chunks, Condenser, cut, plain, replay, split_upgrade

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "golden" / "http2"
NAMES = sorted(path.name.removesuffix(".capture.json") for path in GOLDEN.glob("*.capture.json"))
FLAGS = ["-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fno-sanitize-recover=all"]
FROM_SERVER, FROM_CLIENT, UNKNOWN = 0, 1, 2
UNREAD = 1 << 31

pytestmark = pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")


@pytest.fixture(scope="module")
def walker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("http2") / "walk"
    command = ["clang", *FLAGS, "-fsanitize=address,undefined", str(HERE / "walk.c"), "-o", str(program)]
    if subprocess.run(command, capture_output=True).returncode:  # the sanitizers' libraries are a package of their own
        subprocess.run([*command[:-4], *command[-3:]], check=True)
    return program


def walk(program: Path, mode: int, transfers: list[bytes | int]) -> list[tuple[int, bytes, bool]]:
    """Length, kept bytes and noteworthiness of each transfer; a number stands for bytes that went by unread."""
    script = bytearray([mode])
    for transfer in transfers:
        if isinstance(transfer, int):
            script += struct.pack("<I", transfer | UNREAD)
        else:
            script += struct.pack("<I", len(transfer)) + transfer
    done = subprocess.run([str(program)], input=bytes(script), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    results, position = [], 0
    while position < len(done.stdout):
        length, kept, noteworthy = struct.unpack_from("<IIB", done.stdout, position)
        position += 9
        results.append((length, done.stdout[position : position + kept], bool(noteworthy)))
        position += kept
    assert len(results) == len(transfers)
    return results


def condensed(program: Path, chunks: Chunks) -> list[tuple[bool, int, int, bytes, bool]]:
    """What the kernel side would make of a connection: side, time, length, kept, noteworthy."""
    per_side = {
        side: iter(walk(program, int(side), [data for of, _, data in chunks if of == side])) for side in (True, False)
    }
    return [(side, at, *next(per_side[side])) for side, at, _ in chunks]


@pytest.mark.parametrize("name", NAMES)
def test_operations_are_the_same_as_from_the_raw_bytes(name: str, walker: Path) -> None:
    chunks, upgrade = split_upgrade(Capture.load(GOLDEN / f"{name}.capture.json"))
    expected = [plain(one) for one in replay(chunks, upgrade=upgrade)]
    for seed in range(5):
        pieces = cut(chunks, seed) if seed else chunks
        for omit in (False, True):  # transfers that are not noteworthy need not be sent up
            parser = Http2(from_start=upgrade is None, condensed=True)
            if upgrade is not None:
                parser.upgrade(upgrade)
            offsets = {True: 0, False: 0}
            found = []
            for side, at, length, kept, noteworthy in condensed(walker, pieces):
                if noteworthy or not omit:
                    found += parser.feed(Segment(not side, side, at, offsets[side], length, kept))
                offsets[side] += length
            assert len(found) == len(expected)
            for one, true in zip(found, expected, strict=True):
                ours = plain(one)
                for key in (REQUEST_MESSAGES, RESPONSE_MESSAGES):
                    if key in true["varying"]:
                        ours["varying"].setdefault(key, true["varying"][key])
                assert ours == true
            assert parser.lost == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_what_the_rules_say(name: str, walker: Path) -> None:
    chunks, _ = split_upgrade(Capture.load(GOLDEN / f"{name}.capture.json"))
    for seed in range(3):
        rules = {True: Condenser(24), False: Condenser()}
        for (side, _, data), (_, _, length, kept, noteworthy) in zip(
            cut(chunks, seed), condensed(walker, cut(chunks, seed)), strict=True
        ):
            assert kept == rules[side].condense(data)
            assert length == len(data)
            assert noteworthy or not kept


@pytest.mark.parametrize("frame_type", range(12))
@pytest.mark.parametrize("flags", [0, 1, 8, 9])
@pytest.mark.parametrize("stream", [0, 1])
def test_both_sides_believe_the_same(frame_type: int, flags: int, stream: int, walker: Path) -> None:
    for length in (0, 1, 4, 5, 6, 8, 12, 240, 300, 16_384, 16_385):
        data = length.to_bytes(3, "big") + bytes([frame_type, flags]) + stream.to_bytes(4, "big") + b"\0" * length
        for mode, rule in ((FROM_SERVER, frames.fits), (UNKNOWN, frames.believable)):
            _, kept, _ = walk(walker, mode, [data])[0]
            if rule(length, frame_type, flags, stream):
                assert kept == data[: 9 + frames.kept_bytes(frame_type, flags, length)]
            else:
                assert kept == b""


def test_unread_bytes_inside_a_body_keep_the_step(walker: Path) -> None:
    head = (5000).to_bytes(3, "big") + b"\0\x01\0\0\0\x01"
    reset = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08"
    results = walk(walker, FROM_SERVER, [head + b"x" * 100, 4000, b"x" * 900, reset])
    assert [(kept, noteworthy) for _, kept, noteworthy in results] == [
        (head + b"xxxxx", True), (b"", False), (b"", True), (reset, True),
    ]  # fmt: skip


def test_unread_frames_lose_it_until_a_transfer_begins_with_a_frame(walker: Path) -> None:
    reset = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08"
    results = walk(walker, FROM_SERVER, [reset, 50, b"GET / HTTP/1.1\r\n", reset[1:], reset])
    assert [kept for _, kept, _ in results] == [reset, b"", b"", b"", reset]


@pytest.mark.parametrize("name", ["grpc_python", "go"])
def test_the_parser_notices_records_that_went_missing(name: str, walker: Path) -> None:
    chunks, _ = split_upgrade(Capture.load(GOLDEN / f"{name}.capture.json"))
    truths = {one.varying.get("url.path") or one.name for one in replay(chunks)}
    records = condensed(walker, chunks)
    for gone in range(len(records)):
        parser = Http2(from_start=True, condensed=True)
        offsets = {True: 0, False: 0}
        found = []
        for number, (side, at, length, kept, _) in enumerate(records):
            if number != gone:
                found += parser.feed(Segment(not side, side, at, offsets[side], length, kept))
            offsets[side] += length
        for one in found:
            path = one.varying.get("url.path") or one.name
            assert path in truths | {"POST", "PUT", "grpc"}


def test_it_compiles_for_bpf(tmp_path: Path) -> None:
    subprocess.run(
        ["clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-I/usr/include/x86_64-linux-gnu",
         "-c", str(HERE / "verify.bpf.c"), "-o", str(tmp_path / "verify.o")],
        check=True,
    )  # fmt: skip


def test_a_short_fuzz(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    built = subprocess.run(
        ["clang", *FLAGS, "-fsanitize=fuzzer,address,undefined", str(HERE / "fuzz.c"), "-o", str(program)],
        capture_output=True,
    )
    if built.returncode:
        pytest.skip("no libFuzzer: " + built.stderr.decode().splitlines()[-1])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in NAMES:
        chunks, _ = split_upgrade(Capture.load(GOLDEN / f"{name}.capture.json"))
        for side in (True, False):
            data = b"".join(data for of, _, data in chunks if of == side)
            (corpus / f"{name}-{side}").write_bytes(data[:8192])
    command = [str(program), "-runs=20000", "-seed=1", "-max_len=8192", str(corpus)]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
