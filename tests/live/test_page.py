"""The page in a real browser: every view, light, dark and on a phone; live; hostile text; accessibility.

Screenshots are left in ``build/screenshots``.  The traffic is made up by `support.page_server`; the last test lets a
real agent watch real servers, and needs root and BPF.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onlooker.web.assets import STATIC
from support import screens
from support.browser import AXE, chromium, visit
from support.page_server import HOSTILE_NAME, CannedFacts, Traffic, serve

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
HOSTILE_BYTES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
"""What must not reach a terminal or a log: control characters, marks of direction, invisible ones."""

pytestmark = pytest.mark.skipif(
    not (STATIC / "index.html").exists(), reason="the page is not built: make web (npm ci && npm run build in web/)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    made = Traffic(tmp_path_factory.mktemp("store") / "s", services=("shop", "users", HOSTILE_NAME))
    writer = made.store.writer
    now = time.time()
    clock = [now - 600]
    writer._clock = lambda: clock[0]
    writer._last_round = clock[0] - 1
    for number in range(600):  # ten minutes, one trace a second
        ago = int((now - clock[0]) * 1e9)
        made.put(made.a_trace(number, failing=number % 12 == 0), now_ns=int(clock[0] * 1e9))
        if number % 100 == 0:
            for row in made.hostile():
                made.put([{**row, "ago_ns": ago}])
        clock[0] += 1.0
        writer.round(0.0)
    writer._clock = time.time
    made.store.start()
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def url(traffic: Traffic) -> Iterator[str]:
    facts = CannedFacts(traffic.store, [{"what": "ring_full", "count": 3, "why": "the ring was full <b>once</b>"}])
    with serve(traffic.store, facts=facts) as found:
        yield found


def get(url: str, path: str) -> Any:
    with urllib.request.urlopen(url + path, timeout=10) as response:
        return json.load(response)


def views_of(url: str) -> dict[str, tuple[str, str]]:
    """Name to fragment, and what shows that the view is there."""
    services = {row["name"]: row["id"] for row in get(url, "/api/v1/services")["services"]}
    span = get(url, f"/api/v1/traces?service={services['shop']}&kind=server&status=error")["spans"][0]
    return {
        "overview": ("", "li.service"),
        "map": ("#/map", "g.node"),
        "service": (f"#/service/{services['shop']}", ".u-legend .u-value"),
        "traces": ("#/traces", ".spans li"),
        "trace": (f"#/trace/{span['trace_id']}", ".bar-row"),
        "agent": ("#/agent", "table tbody tr"),
    }


@pytest.mark.parametrize("view", ["overview", "map", "service", "traces", "trace", "agent"])
@pytest.mark.parametrize("look", screens.LOOKS)
def test_every_view(browser: Any, url: str, view: str, look: str) -> None:
    fragment, there = views_of(url)[view]
    with visit(browser, url, **screens.LOOKS[look]) as window:
        window.open(fragment, there)
        SHOTS.mkdir(parents=True, exist_ok=True)
        window.page.screenshot(path=str(SHOTS / f"{view}-{look}.png"))
        window.check()
        assert window.page.inner_text("footer").startswith("live")
        if AXE.exists():
            assert window.accessibility() == []


def test_the_overview_moves_by_itself(browser: Any, url: str, traffic: Traffic) -> None:
    with visit(browser, url) as window:
        window.open("", "li.service")
        before = window.page.inner_text("dl.totals")
        for number in range(10):
            traffic.put(traffic.a_trace(9000 + number))
        window.page.wait_for_function(
            "before => document.querySelector('dl.totals').innerText !== before", arg=before, timeout=15_000
        )
        window.check()


def test_requests_go_by_live(browser: Any, url: str, traffic: Traffic) -> None:
    with visit(browser, url) as window:
        window.open("#/traces?live=1&q=/users/7777", ".filters")
        window.page.wait_for_selector("text=Waiting for requests")
        traffic.put(traffic.a_trace(7777))
        window.page.wait_for_selector(".spans li:has-text('/users/7777')", timeout=15_000)
        window.page.click("text=pause")
        window.page.wait_for_selector("text=go on")
        window.check()


def test_from_the_map_to_a_trace(browser: Any, url: str) -> None:
    with visit(browser, url) as window:
        window.open("#/map", "g.node")
        labels = [e.get_attribute("aria-label") for e in window.page.query_selector_all("g.edge")]
        assert any(label.startswith("shop calls users") for label in labels)
        window.page.focus("g.edge[aria-label^='shop calls users']")
        window.page.keyboard.press("Enter")
        window.page.wait_for_selector(".details h2:has-text('users')")
        window.page.click(".details .plain a >> nth=0")
        window.page.wait_for_selector(".spans li")
        window.page.click(".spans li a >> nth=0")
        window.page.wait_for_selector(".bar-row")
        window.page.focus(".bar-row >> nth=0")
        window.page.keyboard.press("ArrowDown")
        window.page.wait_for_selector(".bar-row:nth-child(3).chosen")
        window.page.click("text=find similar")
        window.page.wait_for_selector(".spans li")
        window.check()


def test_filters_narrow_the_search(browser: Any, url: str) -> None:
    with visit(browser, url) as window:
        window.open("#/traces", ".spans li")
        window.page.select_option(".filters select >> nth=0", label="shop")
        window.page.fill("input[list=statuses]", "error")
        window.page.keyboard.press("Tab")
        window.page.wait_for_selector(".spans:not(:has(li:not(.failed))) li.failed")
        assert "status=error" in window.page.url
        window.check()


def test_a_search_by_time(browser: Any, url: str) -> None:
    with visit(browser, url) as window:
        window.open("#/traces", ".spans li")
        window.page.fill("label.when:has-text('To') input", "2001-01-01T00:00:00")
        window.page.wait_for_selector("text=No stored request is like that")
        window.page.fill("label.when:has-text('To') input", "")
        window.page.fill("label.when:has-text('From') input", "2001-01-01T00:00:00")
        window.page.wait_for_selector(".spans li")
        assert "from=978" in window.page.url  # in µs
        window.check()


def test_a_service_switches_sides_and_sorts(browser: Any, url: str) -> None:
    with visit(browser, url) as window:
        window.open(views_of(url)["service"][0], "table tbody tr")
        window.page.click("text=requests it makes")
        window.page.wait_for_selector("td:has-text('GET /users/*')")
        window.page.click("thead button:has-text('p95') >> nth=0")
        assert window.page.get_attribute("thead th:has-text('p95') >> nth=0", "aria-sort") == "descending"
        window.page.click("canvas.heat-canvas", position={"x": 70, "y": 30})
        window.check()


def test_text_from_traffic_is_shown_and_not_run(browser: Any, url: str) -> None:
    services = {row["name"]: row["id"] for row in get(url, "/api/v1/services")["services"]}
    hostile = services[HOSTILE_NAME]
    trace = get(url, f"/api/v1/traces?service={hostile}&status=500&kind=server")["spans"][0]["trace_id"]
    with visit(browser, url) as window:
        for fragment, there in (
            ("", "li.service"), ("#/map", "g.node"), (f"#/service/{hostile}", "table tbody tr"),
            (f"#/traces?service={hostile}", ".spans li"), (f"#/trace/{trace}", ".bar-row"), ("#/agent", "table tr"),
            (f"#/traces?q={'%3Cscript%3Ealert(4)%3C/script%3E'}", ".filters"), ("#/service/%3Cimg%3E", ".trouble"),
        ):  # fmt: skip
            window.open(fragment, there)
            assert window.page.query_selector("main script, main img:not([src='/icon.svg']), main b b") is None
            text = window.page.inner_text("body")
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
        window.open(f"#/trace/{trace}", ".attributes td")
        assert "<script>alert(1)</script>" in window.page.inner_text(".attributes")
        assert "\\u202e" in window.page.inner_text(".attributes")
        window.page.screenshot(path=str(SHOTS / "hostile.png"))
        # "#/service/<img>" is answered with 400, which the console notes as a failed request
        window.faults = [fault for fault in window.faults if "400 (Bad Request)" not in fault]
        window.check()


def test_the_policy_stops_what_would_slip_through(browser: Any, url: str) -> None:
    with visit(browser, url) as window:
        window.open("", "li.service")
        ran = window.page.evaluate(
            """() => { const e = document.createElement('div');
            e.innerHTML = '<img src=x onerror="window.ran = 1">'; document.body.append(e);
            const s = document.createElement('script'); s.textContent = 'window.ran = 2'; document.body.append(s);
            return new Promise(done => setTimeout(() => done(window.ran || 0), 300)); }"""
        )
        assert ran == 0
        assert any("Content Security Policy" in fault for fault in window.faults)


def test_the_token_is_asked_for_and_kept_out_of_the_address(browser: Any, traffic: Traffic) -> None:
    with serve(traffic.store, token="s3cret") as url, visit(browser, url) as window:
        window.open("", "input[type=password]")
        window.page.fill("input[type=password]", "s3cret")
        window.page.click("text=Open")
        window.page.wait_for_selector("li.service")
        window.page.goto("about:blank")
        window.open("#token=s3cret", "li.service")
        assert "s3cret" not in window.page.url


def test_it_says_when_onlooker_is_gone(browser: Any, traffic: Traffic) -> None:
    with visit(browser, "") as window:
        with serve(traffic.store) as url:
            window.url = url
            window.open("", "li.service")
        window.page.wait_for_selector("text=no connection to onlooker", timeout=15_000)


SERVER = """
import http.client, http.server, sys
port, behind = int(sys.argv[1]), int(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_GET(self):
        if behind:
            c = http.client.HTTPConnection("127.0.0.1", behind)
            c.request("GET", "/inner")
            c.getresponse().read()
        self.send_response(503 if self.path == "/fail" else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.mark.live
@pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root")
def test_a_real_agent_shows_real_requests(browser: Any, tmp_path: Path) -> None:
    front, back, port = _free_port(), _free_port(), _free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), str(own), str(behind)],
            env={**os.environ, "OTEL_SERVICE_NAME": name},
        )
        for own, behind, name in ((front, back, "front"), (back, 0, "back"))
    ]
    config = tmp_path / "c.yaml"
    config.write_text(f"open_port: {front},{back}\nweb: {{port: {port}}}\nstore: {{path: {tmp_path / 's'}}}\n"
                      "prometheus_export: {port: 0}\n")  # fmt: skip
    agent = subprocess.Popen(
        [sys.executable, "-m", "onlooker", "run", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    processes.append(agent)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if get(url, "/api/v1/agent")["processes"] == 2:
                    break
            except OSError:
                pass
            assert agent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for i in range(23):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{front}/{'fail' if i == 5 else 'ok'}", timeout=5).close()
            except urllib.error.HTTPError as err:
                err.close()
        with visit(browser, url) as window:
            window.open("", "li.service")
            window.page.wait_for_function(
                "async () => { const o = await (await fetch('/api/v1/overview')).json();"
                "return o.services.length === 2 && o.services.every(s => s.server && s.server.count === 23) }",
                timeout=20_000,
            )
            window.open("#/map", "g.edge[aria-label^='front calls back']")
            found = get(url, "/api/v1/traces?service=front&status=error&kind=server")["spans"]
            assert len(found) == 1
            window.open(f"#/trace/{found[0]['trace_id']}", ".bar-row")
            window.page.wait_for_function("document.querySelectorAll('.bar-row').length === 3")
            window.check()
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT if process is agent else signal.SIGKILL)
            process.wait(60)


DEMO = {"visitors", "nginx", "shop", "catalog", "pricing", "postgres", "redis-server"}
DEMO_EDGES = {
    ("visitors", "nginx"), ("nginx", "shop"), ("shop", "catalog"), ("shop", "pricing"), ("shop", "postgres"),
    ("shop", "redis-server"),
}  # fmt: skip


def _names_of_edges(url: str) -> set[tuple[str, str]]:
    found = get(url, "/api/v1/map?range=300")
    names = {node["id"]: node["name"] for node in found["nodes"]}
    return {(names[edge["from"]], names[edge["to"]]) for edge in found["edges"]}


def _services_of_traces(url: str) -> set[str]:
    """Of the trace that joins the most."""
    found = get(url, "/api/v1/traces?entry=1&limit=200")["traces"].values()
    rooted = [one["services"] for one in found if one["root"]["service"] == "visitors"]
    return set(max(rooted, key=len, default=[]))


@pytest.mark.live
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root")
@pytest.mark.skipif(not (ROOT / "build/demo/pricing").exists(), reason="the demo is not built: make demo-setup")
def test_the_demo_is_understood_within_a_minute(browser: Any, tmp_path: Path) -> None:
    """What `make run` does: services, a map without a wrong edge, joined traces, and pictures of every view."""
    port = _free_port()
    config = tmp_path / "c.yaml"
    config.write_text(f"web: {{port: {port}}}\nstore: {{path: {tmp_path / 's'}}}\n")
    began = time.monotonic()
    agent = subprocess.Popen(
        [sys.executable, "-m", "onlooker", "run", "--config", str(config), "--",
         sys.executable, str(ROOT / "demo/supervisor.py"), "--port", str(_free_port())],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        edges: set[tuple[str, str]] = set()
        joined: set[str] = set()
        while edges < DEMO_EDGES or not joined >= {"visitors", "nginx", "shop", "pricing"}:
            assert agent.poll() is None
            assert time.monotonic() - began < 60, (edges, joined)
            time.sleep(0.5)
            try:
                edges, joined = _names_of_edges(url), _services_of_traces(url)
            except OSError:
                continue
        understood_s = time.monotonic() - began
        assert {row["name"] for row in get(url, "/api/v1/overview")["services"]} - {"supervisor"} == DEMO
        time.sleep(20)  # for pictures with something on them
        assert _names_of_edges(url) == DEMO_EDGES
        kinds = {node["name"]: node["type"] for node in get(url, "/api/v1/map?range=300")["nodes"]}
        assert {name for name, kind in kinds.items() if kind == "database"} == {"postgres", "redis-server"}
        agent_view = get(url, "/api/v1/agent")
        assert agent_view["lost"] == 0, agent_view["losses"]
        assert screens.take(browser, url, SHOTS / "demo") == []
        print(f"understood after {understood_s:.1f} s")
    finally:
        agent.send_signal(signal.SIGINT)
        agent.wait(60)


HOSTILE_REQUESTS = (
    b"GET /<script>alert(1)</script>/\x1b]0;owned\x07\x1b[2J HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /caf\xe9/\xff\xfe\xc0\x80?x=<img/src=x/onerror=alert(2)> HTTP/1.1\r\nHost: \x1b[31mb\r\n\r\n",
    "GET /\u202egpj.exe/\u2066\u200b HTTP/1.1\r\nHost: <b>c</b>\r\n\r\n".encode(),
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: d\r\n\r\n",
    b"<SVG/ONLOAD=alert(3)> / HTTP/1.1\r\nHost: e\r\ntraceparent: 00-<script>-\x1b[1m-01\r\n\r\n",
)

ANY_SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    peer, _ = listener.accept()
    with peer:
        data = b""
        while b"\\r\\n\\r\\n" not in data:
            more = peer.recv(1 << 20)
            if not more:
                break
            data += more
        peer.sendall(b"HTTP/1.1 500 \\x1b[31m<i>no</i>\\r\\nContent-Length: 2\\r\\n\\r\\nok")
"""


@pytest.mark.live
@pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root")
@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_requests_through_a_real_agent(browser: Any, tmp_path: Path, form: str) -> None:
    """From the wire to the page, the terminal, JSON and the log: nothing of it runs, steers or breaks a line."""
    port, web = _free_port(), _free_port()
    name = "sh<b>op</b>\u202e\x1b]0;owned\x07"
    server = subprocess.Popen(
        [sys.executable, "-c", ANY_SERVER, str(port)], env={**os.environ, "OTEL_SERVICE_NAME": name}
    )
    config = tmp_path / "c.yaml"
    config.write_text(f"open_port: {port}\nweb: {{port: {web}}}\nstore: {{path: {tmp_path / 's'}}}\n"
                      f"trace_printer: {form}\nlog_format: {form}\nlog_level: DEBUG\n")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    url = f"http://127.0.0.1:{web}"
    with (tmp_path / "out").open("wb") as out, (tmp_path / "log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-m", "onlooker", "run", "--config", str(config)], env=environment, stdout=out, stderr=log
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                assert agent.poll() is None
                assert time.monotonic() < deadline
                try:
                    if get(url, "/api/v1/agent")["processes"]:
                        break
                except OSError:
                    time.sleep(0.2)
            for request in HOSTILE_REQUESTS:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
                    peer.sendall(request)
                    while peer.recv(4096):
                        pass
            spans: list[dict[str, Any]] = []
            while len(spans) < 3 and time.monotonic() < deadline:
                time.sleep(0.5)
                spans = get(url, "/api/v1/traces?limit=50")["spans"]
            assert len(spans) >= 3
            for path in ("overview", "map", "services", "traces", f"traces/{spans[0]['trace_id']}", "processes"):
                with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=10) as response:
                    body = response.read()
                assert body.isascii()
                assert not re.search(rb"[\x00-\x1f\x7f]", body)
            for words in (["traces"], ["traces", "--json"], ["top"]):
                done = subprocess.run(
                    [sys.executable, "-m", "onlooker", *words, "--url", url], env=environment, capture_output=True,
                    check=True, timeout=60,
                )  # fmt: skip
                assert not HOSTILE_BYTES.search(done.stdout.decode())
            with visit(browser, url) as window:
                for fragment, there in (
                    ("", "li.service"), ("#/map", "g.node"), ("#/traces", ".spans li"),
                    *((f"#/trace/{span['trace_id']}", ".attributes td") for span in spans),
                ):  # fmt: skip
                    window.open(fragment, there)
                    shown = window.page.inner_text("body")
                    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", shown)
                    assert window.page.query_selector("main script, main svg[onload], main i:has-text('no')") is None
                window.check()
        finally:
            agent.send_signal(signal.SIGINT)
            agent.wait(60)
            server.kill()
            server.wait()
    printed, logged = (tmp_path / "out").read_bytes().decode(), (tmp_path / "log").read_bytes().decode()
    assert len(printed.splitlines()) >= 3
    for text in (printed, logged):
        assert not HOSTILE_BYTES.search(text)
    if form == "json":
        for line in (*printed.splitlines(), *logged.splitlines()):
            json.loads(line)


RELAY = """
import socket, sys, threading
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    for one in (a, b):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    near = listener.accept()[0]
    far = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    threading.Thread(target=pump, args=(near, far), daemon=True).start()
    threading.Thread(target=pump, args=(far, near), daemon=True).start()
"""


@pytest.mark.live
@pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root")
def test_tls_that_nobody_sees_into_is_told_with_its_process(browser: Any, tmp_path: Path) -> None:
    """A relay passes TLS on without a library that could be probed: nobody sees into it, and the page says so."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    port, web = _free_port(), _free_port()
    config = tmp_path / "c.yaml"
    config.write_text(f"open_port: {port}\nweb: {{port: {web}}}\nstore: {{path: {tmp_path / 's'}}}\n")
    url = f"http://127.0.0.1:{web}"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(3):
                with context.wrap_socket(server.accept()[0], server_side=True) as peer:
                    peer.recv(1000)
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        threading.Thread(target=serve, daemon=True).start()
        relay = subprocess.Popen([sys.executable, "-c", RELAY, str(port), str(server.getsockname()[1])])
        agent = subprocess.Popen(
            [sys.executable, "-m", "onlooker", "run", "--config", str(config)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                assert agent.poll() is None
                assert time.monotonic() < deadline
                try:
                    if get(url, "/api/v1/agent")["processes"]:
                        break
                except OSError:
                    time.sleep(0.2)
            trusting = ssl.create_default_context()
            trusting.check_hostname = False
            trusting.verify_mode = ssl.CERT_NONE
            for _ in range(3):
                with urllib.request.urlopen(f"https://127.0.0.1:{port}/", timeout=10, context=trusting) as response:
                    assert response.read() == b"ok"
            told: list[dict[str, Any]] = []
            while not told and time.monotonic() < deadline:
                time.sleep(0.5)
                told = [row for row in get(url, "/api/v1/overview")["unseen"] if row["what"] == "tls_connections"]
            assert relay.pid in told[0]["pids"]
            assert f"(pid {relay.pid})" in told[0]["why"]
            with visit(browser, url) as window:
                window.open("", ".unseen li")
                assert f"(pid {relay.pid})" in window.page.inner_text(".unseen")
                window.page.wait_for_selector("footer :text('some is not seen')")
                window.check()
        finally:
            agent.send_signal(signal.SIGINT)
            agent.wait(60)
            relay.kill()
            relay.wait()
