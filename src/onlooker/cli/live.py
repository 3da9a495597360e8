"""The table that ``onlooker run`` draws in its own terminal: services, their busiest routes, and what the agent costs.

Receives lines that `LiveSource` gives, hands on text.  On a terminal it redraws itself; otherwise it prints a block of
plain lines now and then.  Names come from the network: nothing in them reaches the terminal as a control character.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from onlooker.batches import SpanKind

NARROW: Final = 100
"""Below so many columns the least telling ones are left out."""

_KINDS: Final = {
    int(SpanKind.SERVER): "in",
    int(SpanKind.CLIENT): "out",
    int(SpanKind.PRODUCER): "publish",
    int(SpanKind.CONSUMER): "process",
    int(SpanKind.INTERNAL): "inside",
}


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One line: a service, or a kind of request of one.

    Attributes:
        kind: `SpanKind`.
        name: Span name; "" for all requests of the service.
        rate: Requests a second.
        errors: Share of failed ones, 0 to 1.
        quantiles_s: p50, p95, p99 in seconds, None without a latency.
    """

    service: str
    kind: int
    name: str
    rate: float
    errors: float
    quantiles_s: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class AgentState:
    """The footer.

    Attributes:
        losses: What was lost since the start, by reason; zeros are left out.
        cpu: Of one core, 0 to 1.
        endpoints: What is served where: ("Prometheus", "http://127.0.0.1:9464/metrics").
        notes: Short remarks, the most important first: what is degraded, say.
    """

    losses: Sequence[tuple[str, int]] = ()
    cpu: float = 0.0
    rss_bytes: int = 0
    endpoints: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    processes: int = 0


class LiveSource(Protocol):
    """Where the numbers come from."""

    def services(self) -> Sequence[LiveRow]:
        """One line a service and kind."""

    def routes(self) -> Sequence[LiveRow]:
        """One line a service, kind and span name."""

    def agent(self) -> AgentState:
        """What the agent lost and costs."""


def plain(text: str, limit: int = 200) -> str:
    r"""Text that cannot drive a terminal: control and format characters stand as escapes.

    >>> plain("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return "-"
    for limit, factor, unit in ((0.001, 1e6, "µs"), (1.0, 1e3, "ms"), (60.0, 1.0, "s")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return f"{seconds / 60:.1f}min"


def rate(value: float) -> str:
    """Requests a second."""
    if value >= 99_950:
        return f"{value / 1000:.0f}k"
    if value >= 9_995:
        return f"{value / 1000:.1f}k"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def share(value: float) -> str:
    """A share as percent; the smallest one that is not nothing stays visible."""
    if value <= 0:
        return "0%"
    return "<0.1%" if value < 0.0005 else f"{value * 100:.1f}%" if value < 0.0995 else f"{value * 100:.0f}%"


def size(value: int) -> str:
    """Bytes, in the powers of two that memory comes in."""
    return f"{value / (1 << 20):.0f} MB" if value >= 10 << 20 else f"{value / (1 << 20):.1f} MB"


def _error_style(errors: float) -> str:
    return "red" if errors >= 0.05 else "yellow" if errors > 0 else "dim"


def _table(title: str, first: str, *, wide: bool, named: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), expand=True)
    table.add_column(first, no_wrap=True, overflow="ellipsis", ratio=2, min_width=10)
    if named:
        table.add_column("request", no_wrap=True, overflow="ellipsis", ratio=5)
    table.add_column("", no_wrap=True, style="dim", width=7 if wide else 3)
    for heading in ("req/s", "errors", "p50", "p95", "p99"):
        if wide or not named or heading != "p50":
            table.add_column(heading, justify="right", no_wrap=True, width=7)
    return table


def _cells(row: LiveRow, *, wide: bool, named: bool) -> list[RenderableType]:
    kind = _KINDS.get(row.kind, "")
    quantiles = row.quantiles_s or (None, None, None)
    cells: list[RenderableType] = [Text(plain(row.service), style="cyan")]
    if named:
        cells.append(Text(plain(row.name)))
    cells += [kind if wide else kind[:3], rate(row.rate), Text(share(row.errors), style=_error_style(row.errors))]
    cells += [duration(q) for i, q in enumerate(quantiles) if wide or not named or i]
    return cells


def _top(rows: Sequence[LiveRow], count: int) -> list[LiveRow]:
    """Rows by what hurts and what is busy: a third by errors a second, a third by p95, the rest by rate."""
    third = max(count // 3, 1)
    failing = sorted((row for row in rows if row.errors > 0), key=lambda r: (-r.rate * r.errors, r.service, r.name))
    slow = sorted(
        (row for row in rows if row.quantiles_s), key=lambda r: (-(r.quantiles_s or (0, 0, 0))[1], r.service, r.name)
    )
    busy = sorted(rows, key=lambda r: (-r.rate, r.service, r.name))
    chosen: dict[int, LiveRow] = {}
    for row in (*failing[:third], *slow[:third], *busy):
        if len(chosen) < count:
            chosen.setdefault(id(row), row)
    return sorted(chosen.values(), key=lambda r: (-r.rate, r.service, r.name))


def render(source: LiveSource, *, width: int, height: int) -> RenderableType:
    """The whole view for a terminal of that size."""
    wide = width >= NARROW
    agent = source.agent()
    footer = _footer(agent)
    services = sorted(source.services(), key=lambda r: (-r.rate, r.service, r.kind))
    room = max(height - len(footer) - 8, 4)  # titles, headings, caption, blank lines and the cursor
    shown = min(len(services), max(room // 2, 3))
    table = _table("Services, last 10 s", "service", wide=wide, named=False)
    for row in services[:shown]:
        table.add_row(*_cells(row, wide=wide, named=False))
    parts: list[RenderableType] = [table]
    if not services:
        parts.append(Text("  no requests yet", style="dim"))
    elif len(services) > shown:
        parts[0].caption = f"and {len(services) - shown} more"  # type: ignore[union-attr]  # it is the table
    top = _top(source.routes(), max(room - shown, 2))
    if top:
        routes = _table("Requests", "service", wide=wide, named=True)
        for row in top:
            routes.add_row(*_cells(row, wide=wide, named=True))
        parts += [Text(), routes]
    return Group(*parts, Text(), *footer)


def _footer(agent: AgentState) -> list[Text]:
    losses = [(reason, count) for reason, count in agent.losses if count]
    lost = ", ".join(f"{plain(reason)} {count}" for reason, count in losses) or "nothing"
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("lost: ", style="dim")
    line.append(lost, style="yellow" if losses else "green")
    line.append(
        f"   agent: {agent.cpu * 100:.1f}% cpu, {size(agent.rss_bytes)}, {agent.processes} processes", style="dim"
    )
    lines = [line]
    lines += [
        Text.assemble((f"{plain(name)}: ", "dim"), plain(url), no_wrap=True, overflow="ellipsis")
        for name, url in agent.endpoints
    ]
    lines += [Text(plain(note), style="yellow", no_wrap=True, overflow="ellipsis") for note in agent.notes[:3]]
    return lines


def plain_block(source: LiveSource, *, time_text: str = "") -> list[str]:
    """The same numbers as lines of a log, for output that is no terminal."""
    lines = []
    for row in sorted(source.services(), key=lambda r: (-r.rate, r.service, r.kind)):
        p50, p95, p99 = row.quantiles_s or (None, None, None)
        kind = _KINDS.get(row.kind, "")
        lines.append(
            f"{time_text}{plain(row.service)} {kind} rate={rate(row.rate)}/s errors={share(row.errors)} "
            f"p50={duration(p50)} p95={duration(p95)} p99={duration(p99)}"
        )
    agent = source.agent()
    losses = " ".join(f"{plain(reason)}={count}" for reason, count in agent.losses if count) or "none"
    lines.append(f"{time_text}agent cpu={agent.cpu * 100:.1f}% rss={size(agent.rss_bytes)} lost: {losses}")
    return lines


async def show(
    source: LiveSource,
    stop: asyncio.Event,
    *,
    out: TextIO,
    interval_s: float = 1.0,
    plain_interval_s: float = 10.0,
    time_text: Callable[[], str] = lambda: "",
    console: Console | None = None,
) -> None:
    """Draw until ``stop`` is set: on a terminal in place, else `plain_block` every ``plain_interval_s``."""
    console = console or Console(file=out)
    if not console.is_terminal:
        first = True
        while not await _stopped(stop, plain_interval_s):
            if first:
                first = False
                for name, url in source.agent().endpoints:
                    out.write(f"{time_text()}{plain(name)}: {plain(url)}\n")
            out.write("\n".join(plain_block(source, time_text=time_text())) + "\n")
            out.flush()
        return
    with Live(
        render(source, width=console.width, height=console.height),
        console=console,
        auto_refresh=False,
        screen=False,
        vertical_overflow="crop",
    ) as live:
        while not await _stopped(stop, interval_s):
            live.update(render(source, width=console.width, height=console.height), refresh=True)


async def _stopped(stop: asyncio.Event, wait_s: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), wait_s)
    except TimeoutError:
        return False
    return True
