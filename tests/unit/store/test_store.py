"""The store as a whole: real files, real threads, real crashes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onlooker import semconv
from onlooker.batches import SKIP_METRICS, SKIP_TRACES, SeriesTable, SpanKind
from onlooker.errors import StoreError
from onlooker.store import MEMORY, SpanFilter, Store, StoreOptions, intake
from onlooker.store.schema import APPLICATION_ID
from onlooker.store.tail import ERROR
from onlooker.web import views
from support.page_server import Traffic
from support.request_batches import a_request
from support.store_day import fill


@pytest.fixture(params=["file", "memory"])
def traffic(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Traffic]:
    made = Traffic(tmp_path / "store.sqlite" if request.param == "file" else MEMORY)
    yield made
    made.store.close()


def settle(traffic: Traffic) -> None:
    """Two rounds of the writer, as its thread would do them: a choice sees what came with the round before."""
    for _ in range(2):
        traffic.store.writer.round(0.0)


def search(traffic: Traffic, **want: object) -> list[str]:
    with traffic.store.reader() as reader:
        return [span.name for span in reader.search(SpanFilter(**want)).spans]  # type: ignore[arg-type]


def test_what_was_put_is_found(traffic: Traffic) -> None:
    for number in range(20):
        traffic.put(traffic.a_trace(number, failing=number % 5 == 0))
    settle(traffic)
    with traffic.store.reader() as reader:
        found = reader.search(SpanFilter(status="error", kind=2, service=1, limit=100)).spans
        assert len(found) == 4
        assert {span.name for span in found} == {"GET /checkout"}
        spans = reader.trace(bytes.fromhex(found[0].trace_id))
        assert [span.name for span in spans] == ["GET /checkout", "GET /users/*", "GET /users/*", "SELECT users"]
        assert spans[1].parent_span_id == spans[0].span_id
        assert spans[0].attributes["url.path"] == "/checkout"
        assert ("service.name", "shop") in spans[0].resource
        assert {span.cls for span in spans} == {ERROR}
        now = int(time.time())
        block = reader.metrics(now // 10 * 10 - 300, now + 10, 10)
        assert block.count.sum() == 80


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        ({"operation": "SELECT users"}, 3), ({"service": 2, "kind": 3}, 3), ({"status": "503"}, 3),
        ({"status": "5xx"}, 3), ({"status": "ok"}, 9), ({"text": "USERS/2"}, 2), ({"text": "no such"}, 0),
        ({"attributes": (("db.system.name", "postgresql"),)}, 3), ({"attributes": (("url.path", "/users/1*"),)}, 2),
        ({"attributes": (("url.path", "/users/1"), ("http.route", "/nope"))}, 0), ({"min_us": 60_000_000}, 0),
        ({"max_us": 60_000_000}, 12), ({"from_us": 1 << 60}, 0), ({"to_us": 5}, 0), ({"entry": True}, 3),
        ({"limit": 5}, 5),
    ],
)  # fmt: skip
def test_searching(tmp_path: Path, want: dict[str, object], expected: int) -> None:
    traffic = Traffic(tmp_path / "s")
    for number in range(3):
        traffic.put(traffic.a_trace(number, failing=number == 1))
    settle(traffic)
    assert len(search(traffic, **want)) == expected
    traffic.store.close()


def test_a_search_goes_on_from_its_cursor(traffic: Traffic) -> None:
    for number in range(10):
        traffic.put(traffic.a_trace(number))
    settle(traffic)
    seen: list[int] = []
    cursor = None
    with traffic.store.reader() as reader:
        for _ in range(20):
            found = reader.search(SpanFilter(limit=7, before_id=cursor))
            seen += [span.id for span in found.spans]
            cursor = found.cursor
            if cursor is None:
                break
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 40


def test_ignored_rows_reach_neither_metrics_nor_spans(traffic: Traffic) -> None:
    batch = traffic.batch(traffic.a_trace(1))
    batch.skip = np.array([SKIP_METRICS, SKIP_TRACES, SKIP_METRICS | SKIP_TRACES, 0], np.uint8)
    traffic.store.put(batch)
    settle(traffic)
    assert sorted(search(traffic)) == ["GET /checkout", "SELECT users"]
    with traffic.store.reader() as reader:
        now = int(time.time())
        assert reader.metrics(now // 10 * 10 - 300, now + 10, 10).count.sum() == 2


def test_interesting_traces_survive_a_flood_and_stay_whole(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path / "s")
    writer = traffic.store.writer
    failing: set[bytes] = set()
    for round_number in range(12):
        rows = []
        for i in range(90):
            made = traffic.a_trace(round_number * 1000 + i, failing=i == 7)
            if i == 7:
                failing.add(made[0]["trace"])
            rows += made
        # the children's batch comes before that of the parent, as it does in life
        children = [row for row in rows if row.get("parent")]
        traffic.put(children)
        writer.round(0.0)
        traffic.put([row for row in rows if not row.get("parent")])
        writer.round(0.0)
        writer._last_round -= 0.5
    settle(traffic)
    with traffic.store.reader() as reader:
        kept, _ = reader.span_count()
        assert kept < 3_000  # of 4,320
        for trace in failing:
            assert len(reader.trace(trace)) == 4
        now = int(time.time())
        assert reader.metrics(now // 10 * 10 - 300, now + 10, 10).count.sum() == 4_320
    traffic.store.close()


def test_the_store_keeps_to_its_bytes_and_throws_the_dull_away_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "DETAILED_PER_S", 100_000)  # the bound of the file is what is looked at here
    traffic = Traffic(tmp_path / "s", max_bytes=700_000)
    writer = traffic.store.writer
    for number in range(0, 3000, 100):
        rows = [row for i in range(100) for row in traffic.a_trace(number + i, failing=i == 0)]
        traffic.put(rows)
        writer._tail._share = 1.0
        writer._last_round -= 100.0  # as if this were many seconds: the quota must not do what the bound should
        writer.round(0.0)
        writer.keep_bounds(int(time.time()))
    assert writer.thinned > 0
    assert writer._used_bytes() <= 700_000
    assert os.path.getsize(tmp_path / "s") <= 1_000_000
    with traffic.store.reader() as reader:
        assert len(reader.search(SpanFilter(status="error", service=1, kind=2, limit=500)).spans) == 30
    traffic.store.close()


def test_the_log_beside_the_file_is_emptied_once_nobody_reads(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path / "s")
    writer = traffic.store.writer
    log_file = tmp_path / "s-wal"
    with traffic.store.reader() as reader:
        before, _ = reader.span_count()  # from here on, what is written cannot go from the log into the file
        for number in range(60):
            traffic.put([row for i in range(80) for row in traffic.a_trace(number * 80 + i, failing=True)])
            writer._last_round -= 100.0
            writer.round(0.0)
        writer._db.execute("PRAGMA busy_timeout=50")
        writer.keep_bounds(int(time.time()))
        assert os.path.getsize(log_file) > 2 << 20
        assert reader.span_count()[0] == before
    writer.keep_bounds(int(time.time()))
    assert os.path.getsize(log_file) == 0
    settle(traffic)
    with traffic.store.reader() as reader:
        assert reader.span_count()[0] == writer.kept > 1_000
    traffic.store.close()


def test_what_is_too_old_goes(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path / "s", max_age_s=3600)
    traffic.put(traffic.a_trace(1, ago_ns=7200 * 1_000_000_000))
    traffic.put(traffic.a_trace(2))
    settle(traffic)
    traffic.store.writer.keep_bounds(int(time.time()))
    assert len(search(traffic)) == 4
    traffic.store.close()


def test_a_store_is_found_again(tmp_path: Path) -> None:
    for run in range(3):
        traffic = Traffic(tmp_path / "s")
        traffic.put(traffic.a_trace(run))
        settle(traffic)
        with traffic.store.reader() as reader:
            assert len(reader.search(SpanFilter(limit=500)).spans) == 4 * (run + 1)
            assert [row.full_name for row in reader.services().values()] == ["shop", "users"]
            now = int(time.time())
            assert reader.metrics(now // 10 * 10 - 300, now + 10, 10).count.sum() == 4 * (run + 1)
        traffic.store.close()
    assert os.stat(tmp_path / "s").st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["text", "foreign", "cut", "newer", "scrambled"])
def test_a_file_that_is_no_store_is_set_aside(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "store.sqlite"
    if kind == "text":
        path.write_text("important notes\n" * 100)
    elif kind == "foreign":
        db = sqlite3.connect(path)
        db.executescript("PRAGMA application_id=77; CREATE TABLE other(x); INSERT INTO other VALUES('kept')")
        db.close()
    elif kind == "newer":
        db = sqlite3.connect(path)
        db.executescript(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=99; CREATE TABLE spans(x)")
        db.close()
    else:
        traffic = Traffic(path)
        for number in range(50):
            traffic.put(traffic.a_trace(number))
        settle(traffic)
        traffic.store.close()
        data = bytearray(path.read_bytes())
        if kind == "cut":
            data = data[: len(data) // 3]
        else:
            data[100:] = bytes(len(data) - 100)
        path.write_bytes(data)
    before = path.read_bytes()
    traffic = Traffic(path)
    traffic.put(traffic.a_trace(1))
    settle(traffic)
    assert len(search(traffic)) == 4
    assert traffic.store.path == str(path)
    traffic.store.close()
    aside = [one for one in tmp_path.iterdir() if ".set-aside-" in one.name and not one.name.endswith(("-wal", "-shm"))]
    assert len(aside) == 1
    assert kind in ("newer", "cut", "scrambled") or aside[0].read_bytes() == before
    assert "renamed" in caplog.text


def test_a_second_onlooker_does_not_share_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Store(StoreOptions(path=str(tmp_path / "s")), SeriesTable(), {}.get)
    second = Store(StoreOptions(path=str(tmp_path / "s")), SeriesTable(), {}.get)
    assert (first.path, second.path) == (str(tmp_path / "s"), MEMORY)
    assert "another onlooker" in caplog.text
    second.close()
    first.close()
    third = Store(StoreOptions(path=str(tmp_path / "s")), SeriesTable(), {}.get)
    assert third.path == str(tmp_path / "s")
    third.close()


def test_a_directory_that_cannot_be_written_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = Store(StoreOptions(path=str(tmp_path / "file" / "s")), SeriesTable(), {}.get)
    assert store.path == MEMORY
    assert "in memory only" in caplog.text
    store.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(StoreOptions(path=str(tmp_path / "s")), SeriesTable(), {}.get)
    store.close()
    with pytest.raises(StoreError), store.reader():
        pass


def test_too_much_is_counted_not_kept(tmp_path: Path) -> None:
    traffic = Traffic(MEMORY)
    rows = [row for number in range(2500) for row in traffic.a_trace(number)]
    batch = traffic.batch(rows)
    for _ in range(8):
        traffic.store.put(batch)  # nobody writes meanwhile
    door = traffic.store.intake
    assert door.dropped == 20_000
    assert door.undetailed == 60_000 - door._details_waiting
    assert 0 < door._details_waiting <= intake.DETAILS_MAX + intake.DETAILED_PER_S
    settle(traffic)
    with traffic.store.reader() as reader:
        now = int(time.time())
        assert reader.metrics(now // 10 * 10 - 300, now + 10, 10).count.sum() == 60_000
    traffic.store.close()


def test_what_is_beyond_the_services_is_stored_under_its_name(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path / "s", services=[f"job-{number}" for number in range(600)], series=64)
    traffic.put([a_request(service=number + 1, route=f"/{number}", name=f"GET /{number}") for number in range(600)])
    settle(traffic)
    with traffic.store.reader() as reader:
        names = {row.id: row.full_name for row in reader.services().values()}
        assert "other_services" in names.values()
        assert "unknown_service" not in " ".join(names.values())
    traffic.store.close()


def test_of_a_busy_second_whole_traces_with_something_odd_are_looked_at_first() -> None:
    traffic = Traffic(MEMORY)
    odd: dict[str, set[bytes]] = {"failed": set(), "slow": set(), "rare": set()}
    rows: list[dict[str, Any]] = []
    for number in range(1500):
        made = traffic.a_trace(number, failing=number % 100 == 3)
        trace = made[0]["trace"]
        if number % 100 == 3:
            odd["failed"].add(trace)
        if number % 300 == 7:
            made[0]["duration_ns"] = 60_000_000_000
            odd["slow"].add(trace)
        if number % 750 == 11:
            made[0]["name"], made[0]["route"] = "GET /yearly", "/yearly"
            odd["rare"].add(trace)
        rows += made
    now = time.time_ns()
    traffic.put(rows, now_ns=now)
    (looked_at,) = [one for one in traffic.store.intake.take(0.0) if isinstance(one, intake.Rows)]
    found = [one.tobytes() for one in looked_at.trace_id]
    assert intake.DETAILED_PER_S // 2 < len(found) <= intake.DETAILED_PER_S * 1.13
    assert traffic.store.intake.undetailed == len(rows) - len(found)
    for kind, traces in odd.items():
        assert {trace: found.count(trace) for trace in traces} == dict.fromkeys(traces, 4), kind
    traffic.put(rows, now_ns=now + 100_000_000)  # so much of the next second's share
    (more,) = [one for one in traffic.store.intake.take(0.0) if isinstance(one, intake.Rows)]
    assert 0 < len(more) <= intake.DETAILED_PER_S // 8
    traffic.store.close()


WRITER = """
import sys, time
sys.path[:0] = {paths!r}
from support.page_server import Traffic
traffic = Traffic(sys.argv[1])
traffic.store.start()
number = int(sys.argv[2])
while True:
    traffic.put(traffic.a_trace(number, failing=True))
    print(number, time.time(), flush=True)
    number += 1
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_killed_while_writing_twenty_times(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parents[3] / "src"), str(Path(__file__).parents[2])]
    path = tmp_path / "s"
    told: dict[int, float] = {}
    number = 0
    for run in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER.format(paths=paths), str(path), str(number)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        until = time.time() + 0.3 + run * 0.15
        while time.time() < until:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        lines += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        for line in lines:
            if line.endswith("\n"):
                one, at = line.split()
                told[int(one)] = killed - float(at)
        number = max(told) + 1
    traffic = Traffic(path)
    assert not [one for one in tmp_path.iterdir() if "set-aside" in one.name]
    with traffic.store.reader() as reader:
        rows = reader._db.execute("SELECT DISTINCT trace FROM spans").fetchall()
        (check,) = reader._db.execute("PRAGMA integrity_check").fetchone()
    assert check == "ok"
    kept = {int.from_bytes(row[0][:8], "big") for row in rows}
    lost = [age for one, age in told.items() if one not in kept]
    assert len(kept) > 100
    assert not [age for age in lost if age > 2.5]  # two seconds, and what the machine may pause between two lines
    traffic.store.close()


def test_a_day_of_many_services_reads_as_it_was_written(tmp_path: Path) -> None:
    store = Store(StoreOptions(path=str(tmp_path / "s")), SeriesTable(), {}.get)
    now = int(time.time())
    fill(store, 20, now)
    with store.reader() as reader:
        for seconds in (900, 3600, 21_600, 86_400):
            found = views.overview(reader, seconds, now)
            assert len(found["services"]) == 20
            assert all(row["server"]["count"] > 0 for row in found["services"])
            assert all(0.05 < row["server"]["error_share"] < 0.5 for row in found["services"])
            graph = views.service_map(reader, seconds, now)
            asked = [edge for edge in graph["edges"] if edge["from"] != "outside:"]
            assert len(asked) == 20
            one = views.service(reader, 7, seconds, now)
            assert one is not None
            curve = one["sides"]["server"]["rate_by_status"]["2xx"]
            assert len(curve) == one["steps"]
            assert sum(value is not None and value > 0 for value in curve) >= one["steps"] * 0.9
            total = sum(operation["count"] for operation in one["operations"] if operation["kind"] == "server")
            assert total == one["sides"]["server"]["total"]["count"]
        assert views.service(reader, 4711, 900, now) is None
    store.close()


def test_the_tiers_agree(tmp_path: Path) -> None:
    """The same requests read in steps of ten seconds, minutes and ten minutes, after folding."""
    clock = [1_700_000_000.0 // 600 * 600]
    traffic = Traffic(tmp_path / "s")
    writer = traffic.store.writer
    writer._clock = lambda: clock[0]
    writer._last_round = clock[0]
    for number in range(130):  # 1300 s: two stretches of ten minutes are over
        traffic.put(traffic.a_trace(number, failing=number % 3 == 0), now_ns=int(clock[0] * 1e9))
        clock[0] += 10.0
        writer.round(0.0)
    start = 1_700_000_000 // 600 * 600
    with traffic.store.reader() as reader:
        fine = reader.metrics(start, start + 1800, 10)
        minutes = reader.metrics(start, start + 1800, 60)
        of_one = reader.metrics(start, start + 14_400, 60, service=1)
        coarse = reader.metrics(start, start + 14_400, 600)
        assert fine.count.sum() == minutes.count.sum() == coarse.count.sum() == 130 * 4
        assert fine.errors.sum() == minutes.errors.sum() == coarse.errors.sum()
        assert fine.hits.sum() == minutes.hits.sum() == coarse.hits.sum()
        assert of_one.count.sum() == 130 * 2
    traffic.store.close()


def test_what_a_database_was_asked_from_here_begins_no_trace(traffic: Traffic) -> None:
    here, there = ("10.0.0.1", 5432), ("10.0.0.9", 41_000)
    asked = {"service": 2, "kind": SpanKind.SERVER, "protocol": 3, "name": "SELECT x", "path": None}
    traffic.put(
        [
            {**asked, "local": here, "remote": ("10.0.0.1", 41_000)},
            {**asked, "local": here, "remote": there, "name": "SELECT y"},
            {**asked, "local": here, "remote": there, "dims": {semconv.SERVICE_PEER_NAME: "shop"}},
            {**asked, "local": ("0.0.0.0", 0), "remote": ("0.0.0.0", 0)},
            {"service": 1, "kind": SpanKind.SERVER, "name": "GET /", "local": here, "remote": ("10.0.0.1", 41_001)},
        ]
    )
    for _ in range(2):
        traffic.store.writer.round(0.0)
    with traffic.store.reader() as reader:
        found = reader.search(SpanFilter(entry=True)).spans
    assert sorted(span.name for span in found) == ["GET /", "SELECT y"]
