"""Recordings of real programs.  ``ONLOOKER_GOLDEN=rewrite`` writes the expectations anew, for review."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.protocols.http2 import PREDATES_AGENT, REQUEST_MESSAGES, RESPONSE_MESSAGES, Http2
from support.byte_recording import Capture
from support.http2_replay import Replay, cut, plain, replay, split_upgrade

GOLDEN = Path(__file__).parents[2] / "golden" / "http2"
NAMES = sorted(path.name.removesuffix(".capture.json") for path in GOLDEN.glob("*.capture.json"))
RECORDINGS = {name: split_upgrade(Capture.load(GOLDEN / f"{name}.capture.json")) for name in NAMES}


def test_recordings_are_there() -> None:
    assert len(NAMES) >= 10
    assert sum(path.stat().st_size for path in GOLDEN.glob("*.capture.json")) < 100_000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["server", "client"])
def test_a_recording_gives_the_expected_operations(name: str, role: str) -> None:
    chunks, upgrade = RECORDINGS[name]
    parser = Http2(from_start=upgrade is None, condensed=False)
    if upgrade is not None:
        parser.upgrade(upgrade)
    run = Replay(parser, server=role == "server")
    run.run(chunks)
    found = [plain(operation) for operation in run.operations]
    path = GOLDEN / f"{name}.{role}.json"
    if os.environ.get("ONLOOKER_GOLDEN") == "rewrite":
        path.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")
    assert found == json.loads(path.read_text())
    assert parser.close(10**12, "") == []
    assert parser.lost == 0


@pytest.mark.parametrize("name", NAMES)
def test_how_the_bytes_are_cut_does_not_matter(name: str) -> None:
    chunks, upgrade = RECORDINGS[name]
    expected = [plain(one) for one in replay(chunks, upgrade=upgrade)]

    @given(st.integers(0, 1 << 32))
    @settings(max_examples=8, deadline=None)
    def check(seed: int) -> None:
        assert [plain(one) for one in replay(cut(chunks, seed), upgrade=upgrade)] == expected
        merged = replay(cut(chunks, seed, merge=True), upgrade=upgrade)
        assert [plain(one, times=False) for one in merged] == [
            {key: value for key, value in one.items() if key != "ns"} for one in expected
        ]

    check()


def without_uncertain_counts(ours: dict, theirs: dict) -> dict:
    """Message counts that condensed bytes cannot tell are absent, never wrong."""
    varying = {
        key: value
        for key, value in theirs["varying"].items()
        if key not in (REQUEST_MESSAGES, RESPONSE_MESSAGES) or key in ours["varying"]
    }
    return {**theirs, "varying": varying}


@pytest.mark.parametrize("name", NAMES)
def test_condensed_bytes_tell_the_same(name: str) -> None:
    chunks, upgrade = RECORDINGS[name]
    expected = [plain(one) for one in replay(chunks, upgrade=upgrade)]
    for seed in range(6):
        pieces = cut(chunks, seed) if seed else chunks
        found = [plain(one) for one in replay(pieces, upgrade=upgrade, condensed=True)]
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == without_uncertain_counts(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_from_any_point_on_nothing_wrong_is_said(name: str) -> None:
    """Attached in the middle: each operation is one of the true ones, or says less, and none is counted twice."""
    chunks, upgrade = RECORDINGS[name]
    truths = [plain(one) for one in replay(chunks, upgrade=upgrade)]
    for first in range(1, len(chunks), max(1, len(chunks) // 25)):
        for condensed in (False, True):
            parser = Http2(condensed=condensed)
            run = Replay(parser, condensed=condensed)
            for side, _, data in chunks[:first]:
                run.condensers[side].condense(data)
            run.run(chunks[first:])
            for one in run.operations:
                ours = plain(one)
                if not one.dims.get("error.type"):
                    assert any(agrees(ours, true) for true in truths), ours
            assert len(run.operations) + parser.lost <= len(truths) + 1


def agrees(ours: dict, true: dict) -> bool:
    """Whether all that one says of a request is so."""
    if ours["ns"][3] != true["ns"][3] or ours["ns"][0] != true["ns"][0]:
        return False
    if "rpc.method" in true["dims"] and "rpc.system.name" not in ours["dims"]:
        # Its content type is an unknown index, and so is all that came back: an HTTP request, which says why.
        return ours["varying"].get(PREDATES_AGENT) is True
    for group in ("dims", "varying"):
        for key, value in ours[group].items():
            if key.startswith("onlooker.connection") or key in (REQUEST_MESSAGES, RESPONSE_MESSAGES):
                continue
            if true[group].get(key) != value:
                return False
    return True
