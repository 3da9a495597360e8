"""``onlooker top`` and ``onlooker traces`` in a real terminal (tmux), narrow and wide, piped, with hostile text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from onlooker.store import MEMORY
from support.page_server import HOSTILE_NAME, CannedFacts, Traffic, serve

ROOT = Path(__file__).parents[2]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    traffic = Traffic(MEMORY, services=("shop", "users", HOSTILE_NAME))
    for number in range(30):
        traffic.put(traffic.a_trace(number, failing=number % 10 == 0))
    traffic.put(traffic.hostile())
    for _ in range(2):
        traffic.store.writer.round(0.0)
    facts = CannedFacts(traffic.store, [{"what": "ring_full", "count": 3, "why": "the ring was full"}])
    with serve(traffic.store, facts=facts) as found:
        yield found
    traffic.store.close()


def onlooker(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onlooker", *words], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, check=False,
    )  # fmt: skip


class Terminal:
    """A terminal of that size that runs one command."""

    def __init__(self, command: str, width: int, height: int) -> None:
        self._socket = f"onlooker-{uuid.uuid4().hex[:8]}"
        self._tmux("new-session", "-d", "-x", str(width), "-y", str(height), f"{command}; echo ended; sleep 60")

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, "-f", "/dev/null", *words], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color", "LANG": "C.UTF-8"},
        )  # fmt: skip
        return done.stdout

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def screen(self, *more: str) -> str:
        return self._tmux("capture-pane", "-p", *more)

    def wait(self, pattern: str) -> str:
        deadline = time.monotonic() + 30
        while True:
            text = self.screen()
            if re.search(pattern, text):
                return text
            assert time.monotonic() < deadline, f"{pattern!r} did not come up:\n{text}"
            time.sleep(0.2)

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def terminal() -> Iterator[object]:
    if shutil.which("tmux") is None:
        pytest.skip("no tmux is installed")
    made: list[Terminal] = []

    def start(command: str, width: int = 80, height: int = 24) -> Terminal:
        made.append(Terminal(f"{sys.executable} -m onlooker {command}", width, height))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize("width", [80, 160])
def test_top(terminal: type[Terminal], url: str, width: int) -> None:
    pytest.importorskip("textual")
    top = terminal(f"top --url {url}", width)
    text = top.wait(r"▲\s+shop\s+python")
    assert "10%" in text
    assert "ring_full 3" in text
    assert CONTROL.search(text) is None
    top.keys("s")
    top.wait("sorted by rate")
    top.keys("/")
    top.wait("part of a name")
    top.keys("use")
    assert "shop" not in top.wait(r"1 services.*filter: use")
    top.keys("Enter")
    top.keys("Escape")
    top.wait(r"3 services")
    top.keys("Home", "Enter")
    top.wait("operation")
    top.wait(r"\d\d:\d\d:\d\d\.\d\d\d")
    top.keys("e")
    top.wait("only errors")
    top.keys("q")
    top.wait("3 services")
    top.keys("q")
    top.wait("ended")


def test_traces_in_a_terminal(terminal: type[Terminal], url: str) -> None:
    text = terminal(f"traces --errors --url {url}").wait(r"ended")
    lines = [line for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d", line)]
    assert len(lines) == 10  # nine of the three failed traces, and one hostile
    assert all(len(line) <= 80 for line in lines)


def test_color_only_for_those_who_want_it(terminal: type[Terminal], url: str) -> None:
    colored = terminal(f"traces --errors --url {url}")
    colored.wait("ended")
    assert "\x1b[31m" in colored.screen("-e")
    made = Terminal(f"NO_COLOR=1 {sys.executable} -m onlooker traces --errors --url {url}", 80, 24)
    try:
        made.wait("ended")
        assert "\x1b[31m" not in made.screen("-e")
    finally:
        made.close()


@pytest.mark.parametrize("width", [80, 160])
def test_doctor(terminal: type[Terminal], tmp_path: Path, width: int) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"store: {{path: {tmp_path / 's'}}}\nweb: {{port: 0}}\nprometheus_export: {{port: 0}}\n")
    # one page more than a terminal has: the end is what stays on the screen
    made = terminal(f"doctor --config {config} --pid {os.getppid()}; echo code $?", width, 200)
    text = made.wait(r"code \d")
    assert CONTROL.search(text) is None
    assert all(len(line) <= width for line in text.splitlines())
    for word in ("BTF", "CAP_BPF", "sockets in a", "clock", "would be"):
        assert word in text
    assert re.search(r"configuration (can|cannot) work", text)
    assert ("code 0" in text) == ("configuration can work" in " ".join(text.split()))
    assert "\x1b[3" in made.screen("-e")


def test_doctor_without_color(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"store: {{path: {tmp_path / 's'}}}\nweb: {{port: 0}}\nprometheus_export: {{port: 0}}\n")
    made = Terminal(f"NO_COLOR=1 {sys.executable} -m onlooker doctor --config {config}", 120, 200)
    try:
        made.wait("ended")
        assert not re.search(r"\x1b\[3[1-7]m", made.screen("-e"))
    finally:
        made.close()
    done = onlooker("doctor", "--config", str(config))
    assert CONTROL.search(done.stdout) is None
    assert re.fullmatch(r"((ok|degraded|failed|info) +.+: .+: .+\n)+This configuration .+\n", done.stdout)
    found = json.loads(onlooker("doctor", "--config", str(config), "--json").stdout)
    assert found["can_work"] is (done.returncode == 0)


def test_top_in_black_and_white(url: str) -> None:
    pytest.importorskip("textual")
    made = Terminal(f"NO_COLOR=1 {sys.executable} -m onlooker top --url {url}", 80, 24)
    try:
        made.wait(r"▲\s+shop\s+python")
        # textual draws in greys then: nothing may have a hue
        for red, green, blue in re.findall(r"\x1b\[(?:\d+;)*[34]8;2;(\d+);(\d+);(\d+)", made.screen("-e")):
            assert red == green == blue
        made.keys("q")
        made.wait("ended")
    finally:
        made.close()


def test_piped(url: str) -> None:
    done = onlooker("top", "--url", url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split()[:2] == ["service", "language"]
    assert "10.0 % of requests fail" in done.stdout
    assert CONTROL.search(done.stdout) is None

    done = onlooker("traces", "--service", "shop", "--url", url)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 50
    assert CONTROL.search(done.stdout) is None

    done = onlooker("traces", "--url", url, "--json")
    found = json.loads(done.stdout)
    assert found["spans"][-1]["start_ms"] > 0
    assert CONTROL.search(done.stdout) is None


def test_filters(url: str) -> None:
    done = onlooker("traces", "--service", "nobody", "--url", url)
    assert (done.stdout, done.returncode) == ("", 0)
    assert "no stored request" in done.stderr
    done = onlooker("traces", "--slow", "1h", "--url", url)
    assert done.stdout == ""
    done = onlooker("traces", "--slow", "soon", "--url", url)
    assert done.returncode == 1
    assert "200ms" in done.stderr


def test_hostile_names_stay_on_their_line(url: str) -> None:
    done = onlooker("traces", "--service", HOSTILE_NAME, "--url", url)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert CONTROL.search(done.stdout) is None
    assert "\\u202e" in done.stdout


def test_follow_prints_lines_as_they_come(url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "onlooker", "traces", "--follow", "--json", "--url", url], stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        rows = [json.loads(process.stdout.readline()) for _ in range(10)]
        assert {"shop", "users", HOSTILE_NAME} >= {row["service_name"] for row in rows}
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_nobody_answers() -> None:
    for command in ("top", "traces"):
        done = onlooker(command, "--url", "http://127.0.0.1:9")
        assert done.returncode == 1
        assert "no onlooker answers at http://127.0.0.1:9" in done.stderr
        assert "Traceback" not in done.stderr
    assert onlooker("traces", "--url", "ftp://x").returncode == 1
