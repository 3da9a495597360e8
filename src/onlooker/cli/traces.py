"""``onlooker traces``: requests of a running onlooker, as lines or as JSON; with ``--follow`` as they happen."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, TextIO

from onlooker.cli._local_api import LocalApi
from onlooker.cli.live import duration, plain

LIMIT: Final = 50
_RED, _DIM, _BOLD, _CYAN, _RESET = "\x1b[31m", "\x1b[2m", "\x1b[1m", "\x1b[36m", "\x1b[0m"


def main(args: argparse.Namespace, out: TextIO | None = None, environ: dict[str, str] | None = None) -> int:
    """Print requests, the newest last, as a log has it.

    Raises:
        AgentError: no onlooker answers.
    """
    import os

    out = out or sys.stdout
    environ = dict(os.environ) if environ is None else environ
    api = LocalApi(args.url, args.token)
    query = query_of(args)
    color = out.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size((120, 24)).columns if out.isatty() else 0
    if not args.follow:
        found = api.get("/api/v1/traces", {**query, "limit": str(LIMIT)})
        rows = found["spans"][::-1]
        if args.as_json:
            json.dump({"spans": rows, "complete": found["complete"]}, out, indent=2)
            out.write("\n")
        else:
            _print(rows, out, color=color, width=width)
            if not rows:
                print("no stored request is like that" if found["complete"] else
                      "none among the newest requests", file=sys.stderr)  # fmt: skip
        return 0
    for rows in _follow(api, query):
        if args.as_json:
            out.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        else:
            _print(rows, out, color=color, width=width)
        out.flush()
    return 0


def query_of(args: argparse.Namespace) -> dict[str, str]:
    """The query that the flags mean."""
    query: dict[str, str] = {}
    if args.service:
        query["service"] = args.service
    if args.slow:
        query["min"] = args.slow
    if args.errors:
        query["status"] = "error"
    return query


def _follow(api: LocalApi, query: dict[str, str]) -> Iterator[Sequence[dict[str, Any]]]:
    for event, data in api.events("/api/v1/stream", {**query, "topics": "spans"}):
        if event == "spans" and data["spans"]:
            yield data["spans"][::-1]


def _print(rows: Sequence[dict[str, Any]], out: TextIO, *, color: bool, width: int) -> None:
    for row in rows:
        out.write(line(row, color=color, width=width) + "\n")


def line(row: dict[str, Any], *, color: bool, width: int = 0) -> str:
    """One request; control characters in what came from traffic are written out.

    Args:
        row: As the API gives it.
        color: Whether escape sequences may be used.
        width: Columns to keep to; 0: as long as it is.
    """
    millis = int(row["start_ms"])
    when = time.strftime("%H:%M:%S", time.localtime(millis // 1000)) + f".{millis % 1000:03d}"
    took = duration(row["duration_ms"] / 1e3)
    code = str(row["code"] or ("error" if row["error"] else "ok"))
    arrow = {"client": "→", "server": "←", "producer": "⇒", "consumer": "⇐"}.get(row["kind"], "·")
    what = plain(str(row["name"]))
    target = plain(str(row.get("target") or ""))
    if target and target not in what:
        what = f"{what}  {target}"
    head = f"{when} {took:>7} {plain(code, 8):>5} {arrow} {plain(str(row['service_name']), 24):<14} "
    tail = f"  {row['trace_id']}"
    room = width - len(head) if width else len(what) + len(tail)
    show_id = room >= len(what) + len(tail) or room > 90
    if width:
        room -= len(tail) if show_id else 0
        what = what if len(what) <= room else what[: max(room - 1, 8)] + "…"
    if not color:
        return head + what + (tail if show_id else "")
    tone = _RED if row["error"] else ""
    return (
        f"{_DIM}{when}{_RESET} {_BOLD}{took:>7}{_RESET} {tone}{plain(code, 8):>5}{_RESET} {arrow} "
        f"{_CYAN}{plain(str(row['service_name']), 24):<14}{_RESET} {tone}{what}{_RESET}"
        + (f"{_DIM}{tail}{_RESET}" if show_id else "")
    )
