"""5,000 requests a second with the page open: nothing is lost, the store stays within its bytes, the views answer.

``ONLOOKER_TEST_SOAK_SECONDS`` says how long (12 s without it); from 60 s on, the budgets of CPU, memory and answers are
held too, which says something only on a machine with nothing else to do.  Figures are left in ``build/soak.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onlooker.web.assets import STATIC
from support.agent import free_port
from support.browser import chromium, visit

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("ONLOOKER_TEST_SOAK_SECONDS", "12"))
RATE = 5_000
STORE_BYTES = 24_000_000
"""So little that a long run has to throw away."""
TICKS = os.sysconf("SC_CLK_TCK")

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(SECONDS + 300),
    pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root"),
    pytest.mark.skipif(shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is the server"),
]

NGINX = """
daemon off; master_process off; pid {run}/pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; default_type text/plain;
  client_body_temp_path {run}/b; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f; uwsgi_temp_path {run}/u;
  scgi_temp_path {run}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 "ok\\n"; }}
    location /failing/ {{ return 503 "ok\\n"; }}
    location /nothing/ {{ return 404 "ok\\n"; }}
  }}
}}
"""


def get(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=20) as response:
        return json.load(response)


@contextlib.contextmanager
def ended(process: subprocess.Popen[str], number: int = signal.SIGINT) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, agent: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while True:
        with contextlib.suppress(OSError):
            if get(url, "/api/v1/agent")["processes"]:
                return
        assert agent.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int, name: str = "VmRSS") -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name + ":")) / 1024


def ask_views(url: str, service: int) -> dict[str, float]:
    """Each view once, and how long it took in ms."""
    took = {}
    for name, path in (
        ("overview", "/api/v1/overview?range=900"), ("map", "/api/v1/map?range=900"),
        ("service", f"/api/v1/services/{service}?range=900"), ("traces", "/api/v1/traces?limit=60&entry=1"),
        ("failed", f"/api/v1/traces?service={service}&status=503"), ("slow", "/api/v1/traces?min=50ms"),
        ("text", "/api/v1/traces?q=users/99"), ("agent", "/api/v1/agent"),
    ):  # fmt: skip
        began = time.monotonic()
        get(url, path)
        took[name] = (time.monotonic() - began) * 1000
    return took


def test_five_thousand_requests_a_second_with_the_page_open(tmp_path: Path) -> None:
    port, web = free_port(), free_port()
    (tmp_path / "nginx.conf").write_text(NGINX.format(run=tmp_path, port=port))
    server = subprocess.Popen(
        [shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx", "-e", "stderr", "-p", str(tmp_path), "-c",
         str(tmp_path / "nginx.conf")], text=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    config = tmp_path / "c.yaml"
    store = tmp_path / "store.sqlite"
    config.write_text(f"open_port: {port}\nweb: {{port: {web}}}\nstore: {{path: {store}, max_bytes: {STORE_BYTES}}}\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    environment.pop("ONLOOKER_TEST_SOAK_SECONDS", None)  # it is no key of onlooker's
    with ended(server, signal.SIGTERM):
        agent = subprocess.Popen(
            [sys.executable, "-m", "onlooker", "run", "--config", str(config)], env=environment, text=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        with ended(agent), contextlib.ExitStack() as stack:
            url = f"http://127.0.0.1:{web}"
            wait_for(url, agent)
            windows = []
            if (STATIC / "index.html").exists():
                browser = stack.enter_context(chromium())
                for fragment in ("", "#/map", "#/traces?live=1"):
                    window = stack.enter_context(visit(browser, url))
                    window.page.goto(f"{url}/{fragment}")
                    windows.append(window)
            before, began = get(url, "/api/v1/agent"), time.monotonic()
            used, counted = cpu_s(agent.pid), before["requests"]
            load = stack.enter_context(
                ended(
                    subprocess.Popen(
                        [sys.executable, "-m", "support.paced_load", str(port), str(RATE), str(SECONDS)],
                        env=environment, text=True, stdout=subprocess.PIPE,
                    )
                )
            )  # fmt: skip
            took: dict[str, list[float]] = {}
            largest, rss = 0, []
            while load.poll() is None:
                time.sleep(min(SECONDS / 8, 5.0))
                services = get(url, "/api/v1/services")["services"]
                if services:
                    for name, ms in ask_views(url, services[0]["id"]).items():
                        took.setdefault(name, []).append(ms)
                largest = max(largest, sum(one.stat().st_size for one in tmp_path.glob("store.sqlite*")))
                rss.append(rss_mb(agent.pid))
            assert load.returncode == 0
            sent = json.loads(load.communicate()[0])
            seconds = time.monotonic() - began
            used = cpu_s(agent.pid) - used
            deadline = time.monotonic() + 30
            while get(url, "/api/v1/agent")["requests"] - counted < sent["sent"] and time.monotonic() < deadline:
                time.sleep(0.3)
            time.sleep(2.0)
            after = get(url, "/api/v1/agent")
            overview = get(url, "/api/v1/overview?range=86400")
            for window in windows:
                window.check()
            figures = {
                **sent,
                "cpu_of_a_core": round(used / seconds, 4),
                # all but the pipeline: the store's writer, its readers, the event loop, and waiting for the rings
                "store_and_page_cpu_of_a_core": round(
                    (used - after["drain"]["cpu_s"] + before["drain"]["cpu_s"]) / seconds, 4
                ),
                "store_writer_cpu_of_a_core": round(
                    (after["store"]["cpu_s"] - before["store"]["cpu_s"]) / seconds, 4
                ),
                "rss_mb": {
                    name: round(mb, 1)
                    for name, mb in (("first", rss[0]), ("last", rss[-1]), ("peak", rss_mb(agent.pid, "VmHWM")))
                },
                "store_mb": round(largest / 1e6, 2),
                "spans": after["store"]["spans"], "thinned": after["store"]["spans_thinned"],
                "undetailed": after["store"]["undetailed"],
                "views_ms": {
                    name: {"median": round(statistics.median(all_of_it), 1), "worst": round(max(all_of_it), 1)}
                    for name, all_of_it in took.items()
                },
                "lost": after["lost"], "dropped": after["store"]["dropped"],
            }  # fmt: skip
            (ROOT / "build").mkdir(exist_ok=True)
            (ROOT / "build/soak.json").write_text(json.dumps(figures, indent=2) + "\n")
            print(json.dumps(figures, indent=2))
    assert after["requests"] - counted == sent["sent"]
    assert (after["lost"], after["store"]["dropped"], after["store"]["failures"]) == (0, 0, 0)
    (service,) = overview["services"]
    assert service["server"]["count"] == sent["sent"]  # the store has all of them, too
    assert service["server"]["errors"] == sum(number % 100 == 3 for number in range(sent["sent"]))
    assert largest <= STORE_BYTES + 5_000_000  # the write-ahead log stands beside it
    if SECONDS >= 60:
        assert figures["store_and_page_cpu_of_a_core"] <= 0.10, figures
        assert all(one["median"] <= 200 for one in figures["views_ms"].values()), figures
        assert rss[-1] <= rss[len(rss) // 4] + 6, figures
        assert max(rss) <= 64, figures
