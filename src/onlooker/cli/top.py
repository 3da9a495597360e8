"""``onlooker top``: the overview for people without a browser.

A process of its own over the local API.  On a terminal a textual application: sort, filter, look into a service, watch
requests go by.  Into a pipe: one plain table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

from onlooker.cli._local_api import LocalApi
from onlooker.cli.live import duration, plain, rate, share, size
from onlooker.errors import AgentError

if TYPE_CHECKING:
    from textual.app import App

SORTS: Final = ("wrong", "rate", "errors", "p95", "name")
_MARKS: Final = {"failing": "▲", "degraded": "◆", "slower": "◆", "ok": "●", "idle": "○"}


def main(args: argparse.Namespace, out: TextIO | None = None) -> int:
    """Show the services until the user leaves.

    Raises:
        AgentError: no onlooker answers, or the terminal library is missing.
    """
    out = out or sys.stdout
    api = LocalApi(args.url, args.token)
    found = api.get("/api/v1/overview", {"range": "300"})
    if not out.isatty() or not sys.stdin.isatty():
        print_plain(found, out)
        return 0
    try:
        app = make_app(api, found)
    except ModuleNotFoundError as err:
        if err.name != "textual":
            raise
        raise AgentError("onlooker top needs the package textual: pip install 'onlooker[top]'") from err
    app.run()
    return 0


def side_of(row: dict[str, Any]) -> dict[str, Any]:
    """What a service serves, or what it calls if it serves nothing."""
    return row["server"] or row["client"] or {}


def _s(milliseconds: float | None) -> str:
    return duration(None if milliseconds is None else milliseconds / 1e3)


def cells(row: dict[str, Any]) -> list[str]:
    """The columns of a service as plain text."""
    side = side_of(row)
    return [
        plain(str(row["name"]), 28), plain(str(row["language"]), 12), str(row["processes"]),
        rate(side.get("rate") or 0.0), share(side.get("error_share") or 0.0),
        _s(side.get("p50_ms")), _s(side.get("p95_ms")), _s(side.get("p99_ms")), plain(str(row["why"]), 60),
    ]  # fmt: skip


HEADINGS: Final = ("service", "language", "procs", "req/s", "errors", "p50", "p95", "p99", "")


def order(rows: Sequence[dict[str, Any]], by: str, text: str) -> list[dict[str, Any]]:
    """Rows that match, sorted; the API's own order is "what is wrong"."""
    kept = [row for row in rows if text.casefold() in f"{row['name']} {row['language']}".casefold()]
    if by == "name":
        return sorted(kept, key=lambda row: str(row["name"]))
    field = {"rate": "rate", "errors": "error_share", "p95": "p95_ms"}.get(by)
    return sorted(kept, key=lambda row: -(side_of(row).get(field) or 0.0)) if field else kept


def print_plain(found: dict[str, Any], out: TextIO) -> None:
    """One table for a pipe."""
    table = [list(HEADINGS), *(cells(row) for row in found["services"])]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    for row in table:
        parts = [
            text.ljust(w) if i in (0, 1, 8) else text.rjust(w)
            for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        out.write("  ".join(parts).rstrip() + "\n")
    out.write(footer(found) + "\n")


def footer(found: dict[str, Any]) -> str:
    """What onlooker lost and costs."""
    agent = found["agent"]
    lost = ", ".join(f"{plain(str(one['what']))} {one['count']}" for one in found["unseen"]) or "nothing"
    return f"not seen: {lost}   onlooker: {agent['cpu_share'] * 100:.1f}% cpu, {size(agent['rss_bytes'])}"


def make_app(api: LocalApi, first: dict[str, Any]) -> App[None]:
    """The terminal application, made here so that nothing else pays for its libraries."""
    from rich.text import Text
    from textual import work
    from textual.app import App, ComposeResult
    from textual.binding import Binding
    from textual.containers import Vertical
    from textual.screen import Screen
    from textual.widgets import DataTable, Footer, Input, RichLog, Static

    tones = {"failing": "bold red", "degraded": "yellow", "slower": "yellow", "ok": "green", "idle": "dim"}

    class ServiceScreen(Screen[None]):
        """One service: operations above, its requests below."""

        BINDINGS = [Binding("escape,q", "app.pop_screen", "back"), Binding("e", "errors", "only errors")]  # noqa: RUF012  # textual's way

        def __init__(self, row: dict[str, Any]) -> None:
            super().__init__()
            self.row = row
            self.only_errors = False
            self.last = 0

        def compose(self) -> ComposeResult:
            yield Static(id="title")
            yield DataTable(id="operations", cursor_type="row", zebra_stripes=True)
            yield RichLog(id="log", max_lines=500, wrap=False)
            yield Footer()

        def on_mount(self) -> None:
            self.query_one(DataTable).add_columns("operation", "side", "req/s", "errors", "p50", "p95", "p99", "time")
            self.refresh_data()
            self.set_interval(2.0, self.refresh_data)

        def action_errors(self) -> None:
            self.only_errors = not self.only_errors
            self.last = 0
            self.query_one(RichLog).clear()
            self.refresh_data()

        @work(thread=True, exclusive=True)
        def refresh_data(self) -> None:
            try:
                service = api.get(f"/api/v1/services/{int(self.row['id'])}", {"range": "300"})
                query = {"service": str(self.row["id"]), "limit": "40", "after": str(self.last)}
                if self.only_errors:
                    query["status"] = "error"
                spans = api.get("/api/v1/traces", query)["spans"]
            except AgentError as err:
                self.app.call_from_thread(self.app.notify, str(err), severity="error")
                return
            self.app.call_from_thread(self.show, service, spans)

        def show(self, service: dict[str, Any], spans: list[dict[str, Any]]) -> None:
            from onlooker.cli.traces import line

            if not self.is_attached:
                return
            running = service["processes"]["running"]
            title = Text.assemble(
                (plain(str(service["name"])), "bold"), f"  {plain(str(service['language']))}, ",
                f"{len(running)} running, {service['processes']['ended']} ended",
            )  # fmt: skip
            if self.only_errors:
                title.append("   only errors", style="yellow")
            self.query_one("#title", Static).update(title)
            table = self.query_one(DataTable)
            at = table.cursor_row
            table.clear()
            for one in service["operations"][:100]:
                table.add_row(
                    Text(plain(str(one["name"]), 60)), one["kind"], rate(one["rate"]),
                    Text(share(one["error_share"]), style="red" if one["error_share"] else "dim"),
                    _s(one["p50_ms"]), _s(one["p95_ms"]), _s(one["p99_ms"]), share(one["time_share"]),
                )  # fmt: skip
            table.move_cursor(row=at)
            log = self.query_one(RichLog)
            for span in spans[::-1]:
                self.last = max(self.last, int(span["id"]))
                log.write(Text(line(span, color=False), style="red" if span["error"] else "", no_wrap=True))

    class Top(App[None]):
        """The list of services."""

        TITLE = "onlooker"
        ENABLE_COMMAND_PALETTE = False
        CSS = """
        #head { height: 1; padding: 0 1; background: $primary-background; }
        #services { height: 1fr; }
        #unseen { height: auto; max-height: 3; padding: 0 1; color: $text-muted; }
        #filter { display: none; height: 3; }
        #filter.shown { display: block; }
        #title { height: 1; padding: 0 1; background: $primary-background; }
        #operations { height: 1fr; }
        #log { height: 1fr; border-top: solid $primary; }
        """
        BINDINGS = [  # noqa: RUF012  # textual's way
            Binding("q", "quit", "quit"),
            Binding("s", "sort", "sort"),
            Binding("slash", "filter", "filter", key_display="/"),
            Binding("enter", "open", "open", show=True, priority=False),
            Binding("escape", "clear", "clear", show=False),
        ]

        def __init__(self) -> None:
            super().__init__()
            self.found = first
            self.sort_by = SORTS[0]
            self.text = ""
            self.trouble = ""

        def compose(self) -> ComposeResult:
            with Vertical():
                yield Static(id="head")
                yield Input(placeholder="part of a name, Enter to go on", id="filter")
                yield DataTable(id="services", cursor_type="row", zebra_stripes=True)
                yield Static(id="unseen")
            yield Footer()

        def on_mount(self) -> None:
            self.query_one("#services", DataTable).add_columns(" ", *HEADINGS)
            self.query_one("#services", DataTable).focus()
            self.draw()
            self.set_interval(2.0, self.refresh_data)

        @work(thread=True, exclusive=True)
        def refresh_data(self) -> None:
            try:
                found = api.get("/api/v1/overview", {"range": "300"})
            except AgentError as err:
                self.call_from_thread(self.take, None, str(err))
                return
            self.call_from_thread(self.take, found, "")

        def take(self, found: dict[str, Any] | None, trouble: str) -> None:
            self.found = found or self.found
            self.trouble = trouble
            self.draw()

        def draw(self) -> None:
            if len(self.screen_stack) > 1:
                return
            rows = order(self.found["services"], self.sort_by, self.text)
            head = Text(f"onlooker  {len(rows)} services, last 5 min, sorted by {self.sort_by}")
            if self.text:
                head.append(f"  filter: {plain(self.text, 30)}", style="yellow")
            if self.trouble:
                head = Text(plain(self.trouble), style="bold red")
            self.query_one("#head", Static).update(head)
            table = self.query_one("#services", DataTable)
            at = table.cursor_row
            table.clear()
            for row in rows:
                tone = tones.get(str(row["health"]), "")
                texts = [Text(text) for text in cells(row)]
                texts[4].stylize("red" if side_of(row).get("error_share") else "dim")
                texts[8].stylize(tone)
                table.add_row(Text(_MARKS.get(str(row["health"]), " "), style=tone), *texts, key=str(row["id"]))
            table.move_cursor(row=at)
            self.query_one("#unseen", Static).update(Text(footer(self.found)))

        def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
            if event.data_table.id != "services":
                return
            row = next((one for one in self.found["services"] if str(one["id"]) == event.row_key.value), None)
            if row is not None:
                self.push_screen(ServiceScreen(row))

        def action_sort(self) -> None:
            self.sort_by = SORTS[(SORTS.index(self.sort_by) + 1) % len(SORTS)]
            self.draw()

        def action_filter(self) -> None:
            box = self.query_one("#filter", Input)
            box.add_class("shown")
            box.focus()

        def on_input_changed(self, event: Input.Changed) -> None:
            self.text = event.value
            self.draw()

        def on_input_submitted(self, _event: Input.Submitted) -> None:
            self.query_one("#filter", Input).remove_class("shown")
            self.query_one("#services", DataTable).focus()

        def action_clear(self) -> None:
            self.text = ""
            self.query_one("#filter", Input).value = ""
            self.on_input_submitted(None)  # type: ignore[arg-type]  # the event is not looked at
            self.draw()

    return Top()
