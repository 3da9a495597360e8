from __future__ import annotations

import asyncio
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from onlooker.batches import SpanKind
from onlooker.cli.live import AgentState, LiveRow, duration, plain, plain_block, rate, render, share, show, size

GOLDEN_80 = """\
Services, last 10 s
service                                   req/s  errors     p50     p95     p99
nginx                               in    12.0k   <0.1%    81µs   210µs    1.2s
web-shop                            out     301      0%   900µs   3.0ms    10ms
web-shop                            in      152    1.2%   3.1ms    21ms   133ms
evil\\x1b[2J                         in      0.3     70%       -       -       -

Requests
service      request                              req/s  errors     p95     p99
web-shop     GET /products/*                in      120      0%    20ms    30ms
web-shop     POST /checkout                 in     12.0     10%   200ms   400ms
evil\\x1b[2J  GET /[bold]x[/bold]\\n          in      0.3     70%       -       -

lost: unreadable 3   agent: 1.3% cpu, 31 MB, 7 processes
Prometheus: http://127.0.0.1:9464/metrics
"""


class Source:
    """Numbers that stand still."""

    def __init__(self, services=None, routes=None, agent=None):
        self._services = services if services is not None else [
            LiveRow("web-shop", SpanKind.SERVER, "", 152.3, 0.012, (0.0031, 0.021, 0.133)),
            LiveRow("web-shop", SpanKind.CLIENT, "", 301.2, 0, (0.0009, 0.003, 0.010)),
            LiveRow("nginx", SpanKind.SERVER, "", 12045.0, 0.0001, (0.0000812, 0.00021, 1.2)),
            LiveRow("evil\x1b[2J", SpanKind.SERVER, "", 0.3, 0.7, None),
        ]  # fmt: skip
        self._routes = routes if routes is not None else [
            LiveRow("evil\x1b[2J", SpanKind.SERVER, "GET /[bold]x[/bold]\n", 0.3, 0.7, None),
            LiveRow("web-shop", SpanKind.SERVER, "POST /checkout", 12.0, 0.1, (0.1, 0.2, 0.4)),
            LiveRow("web-shop", SpanKind.SERVER, "GET /products/*", 120.0, 0, (0.01, 0.02, 0.03)),
        ]  # fmt: skip
        self._agent = agent or AgentState(
            [("ring_full", 0), ("unreadable", 3)],
            0.013,
            31 << 20,
            [("Prometheus", "http://127.0.0.1:9464/metrics")],
            [],
            7,
        )

    def services(self):
        return self._services

    def routes(self):
        return self._routes

    def agent(self):
        return self._agent


def drawn(source, width, height):
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None, force_terminal=False)
    console.print(render(source, width=width, height=height))
    return out.getvalue()


def test_golden_80_by_24():
    assert "\n".join(line.rstrip() for line in drawn(Source(), 80, 24).splitlines()) + "\n" == GOLDEN_80


def test_a_wide_terminal_has_all_columns():
    text = drawn(Source(), 140, 40)
    assert all(len(line) <= 140 for line in text.splitlines())
    assert text.count("p50") == 2


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60)])
def test_many_rows_fit_the_screen(width, height):
    services = [LiveRow(f"s{i}", SpanKind.SERVER, "", i, 0, (0.1, 0.2, 0.3)) for i in range(100)]
    routes = [LiveRow(f"s{i}", SpanKind.SERVER, f"GET /{i}", i, 0, (0.1, 0.2, 0.3)) for i in range(300)]
    lines = drawn(Source(services, routes), width, height).splitlines()
    assert len(lines) <= max(height, 14)
    assert any("more" in line for line in lines)


def test_failing_and_slow_requests_are_shown_beside_the_busy_ones():
    routes = [LiveRow("s", SpanKind.SERVER, f"GET /busy{i}", 1000 - i, 0, (0.1, 0.1, 0.1)) for i in range(50)]
    routes.append(LiveRow("s", SpanKind.SERVER, "GET /failing", 0.2, 1.0, (0.1, 0.1, 0.1)))
    routes.append(LiveRow("s", SpanKind.SERVER, "GET /slow", 0.1, 0, (5.0, 9.0, 9.9)))
    text = drawn(Source(routes=routes), 100, 24)
    assert "GET /failing" in text
    assert "GET /slow" in text
    assert "GET /busy0" in text


def test_before_the_first_request():
    assert "no requests yet" in drawn(Source([], []), 80, 24)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_name_reaches_the_terminal_with_a_control_character(service, name):
    source = Source(
        [LiveRow(service, SpanKind.SERVER, "", 1, 0, None)],
        [LiveRow(service, SpanKind.CLIENT, name, 1, 0, None)],
        AgentState([(service, 1)], 0, 0, [(name, service)], [name]),
    )
    text = drawn(source, 120, 30) + "\n".join(plain_block(source))
    # Cc: control, Cf: also turns the direction of text, Zl and Zp: line ends, Cs: no UTF-8.
    assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs")} - {"\n"}


def test_texts_of_numbers():
    assert [duration(v) for v in (None, 0.0000012, 0.00042, 0.0031, 0.25, 1.23, 12.3, 90)] == [
        "-", "1.2µs", "420µs", "3.1ms", "250ms", "1.2s", "12s", "1.5min",
    ]  # fmt: skip
    assert [rate(v) for v in (0, 9.96, 150.4, 12_345, 123_456)] == ["0.0", "10.0", "150", "12.3k", "123k"]
    assert [share(v) for v in (0, 0.0001, 0.005, 0.5, 1)] == ["0%", "<0.1%", "0.5%", "50%", "100%"]
    assert [size(v) for v in (0, 5 << 20, 64 << 20)] == ["0.0 MB", "5.0 MB", "64 MB"]


def test_long_names_are_cut():
    assert len(plain("x" * 10_000)) == 200


def run_show(console, source, **more):
    async def go():
        stop = asyncio.Event()
        task = asyncio.create_task(show(source, stop, out=console.file, console=console, **more))
        await asyncio.sleep(0.2)
        stop.set()
        await task

    asyncio.run(go())


def test_output_that_is_no_terminal_gets_plain_lines():
    out = io.StringIO()
    run_show(Console(file=out, force_terminal=False), Source(), plain_interval_s=0.02, time_text=lambda: "12:00:00 ")
    lines = out.getvalue().splitlines()
    assert lines[0] == "12:00:00 Prometheus: http://127.0.0.1:9464/metrics"
    assert lines[1] == "12:00:00 nginx in rate=12.0k/s errors=<0.1% p50=81µs p95=210µs p99=1.2s"
    assert "12:00:00 agent cpu=1.3% rss=31 MB lost: unreadable=3" in lines
    assert "\x1b" not in out.getvalue()


def test_a_terminal_is_redrawn_and_left_clean():
    out = io.StringIO()
    run_show(Console(file=out, force_terminal=True, width=80, height=24, color_system=None), Source(), interval_s=0.02)
    text = out.getvalue()
    assert text.count("Services, last 10 s") >= 2
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is shown again
