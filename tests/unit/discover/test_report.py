import io
import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.config.loader import load_text
from onlooker.discover import report
from support.fake_proc import FakeProc


def loaded(yaml: str):  # type: ignore[no-untyped-def]  # the loader's own type
    return load_text(yaml, name="test.yml", environ={}, flags={})


@given(st.text())
def test_nothing_printed_can_steer_a_terminal(text: str) -> None:
    shown = report.printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert len(shown) <= report.MAX_TEXT * 10 + 1


def test_control_characters_stay_visible() -> None:
    assert report.printable("a\x1b[2J\nb\u202e") == "a\\x1b[2J\\nb\\u202e"
    assert report.printable("übung") == "übung"


def test_rows_say_what_is_watched_and_why(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70, exe="/srv/shop", ports=(8080, 8081))
    fake.add(71, exe="/srv/evil\x1b[2J")
    fake.add(72, flags=0x200000)
    rows = report.examine(fake.open(), loaded("open_port: 8080"), own_pid=1)
    assert [(row.pid, row.watched, row.service, row.ports) for row in rows] == [
        (70, True, "shop", (8080, 8081)),
        (71, False, "", ()),
    ]
    assert rows[0].reason == "selected by open_port"
    out = io.StringIO()
    report._print_plain(rows, out)
    assert "watch 70 shop (generic) ports 8080,8081 /srv/shop: selected by open_port" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "1 of 2 processes would be watched, 1 service instances" in out.getvalue()


def test_the_table_is_safe_too(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70, exe="/srv/[bold]x\x1b[2J")
    rows = report.examine(fake.open(), loaded("discovery: {all: true}"), own_pid=1)
    out = io.StringIO()
    report._print_table(rows, out)
    assert "\x1b" not in out.getvalue()
    assert "[bold]x" in out.getvalue()


def test_candidates_are_those_that_listen(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70, exe="/usr/bin/python3.11", args=["python3", "/srv/shop/web.py"], ports=(8080,))
    fake.add(71, exe="/usr/bin/python3.11", args=["python3", "/srv/shop/web.py"], ports=(8080,), parent=70)
    fake.add(72)
    assert report.candidates(str(fake.root)) == [
        report.Candidate(70, "shop", "python", (8080,), "--open-port 8080"),
    ]


def test_the_report_of_this_machine_finds_this_very_test(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        mine = [c for c in report.candidates() if c.pid == os.getpid()]
        assert len(mine) == 1
        assert mine[0].language == "python"
        assert port in mine[0].ports
        assert report.main(loaded(f"open_port: {port}"), True) == 0
    rows = json.loads(capsys.readouterr().out)["processes"]
    (row,) = [row for row in rows if row["pid"] == os.getpid()]
    assert row["reason"] == "onlooker itself"
    assert not row["watched"]
