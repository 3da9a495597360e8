"""What an exporter asks of a transport, and how the receiver's answers are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from onlooker.export._wire import fields

MAX_RESPONSE_BYTES = 65_536
MAX_MESSAGE_CHARACTERS = 300  # of a receiver's own words, in logs and statistics


@dataclass(frozen=True, slots=True)
class Answer:
    """A receiver took a request.

    Attributes:
        rejected: Spans or points that it did not want.
        message: What it said about that; a warning if nothing was rejected.
    """

    rejected: int = 0
    message: str = ""


class Transport(Protocol):
    """Carries requests to one receiver.  Used by one thread; `close` may come from another."""

    def send(self, data: bytes) -> Answer:
        """Send one serialized request and wait for the answer.

        Raises:
            ExportError: It was not taken; says whether and when to try again.
        """

    def close(self) -> None:
        """Give up connections, also that of a request under way."""


def clean(text: str) -> str:
    """Foreign text, fit for one line of a log."""
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * MAX_MESSAGE_CHARACTERS])
    return " ".join(line.split())[:MAX_MESSAGE_CHARACTERS]


def read_answer(body: bytes) -> Answer:
    """Read an ``Export…ServiceResponse``; nonsense counts as an empty one: the status has said that it was taken."""
    for number, value in fields(body):
        if number == 1 and isinstance(value, bytes):
            rejected, message = 0, ""
            for inner, content in fields(value):
                if inner == 1 and isinstance(content, int) and content < 1 << 63:
                    rejected = content
                elif inner == 2 and isinstance(content, bytes):
                    message = content[: 4 * MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace")
            return Answer(rejected, clean(message))
    return Answer()


def read_json_answer(body: bytes) -> Answer:
    """The same in JSON."""
    try:
        partial = json.loads(body)["partialSuccess"]
        rejected = partial.get("rejectedSpans") or partial.get("rejectedDataPoints") or 0
        return Answer(max(int(rejected), 0), clean(str(partial.get("errorMessage") or "")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return Answer()


def status_message(body: bytes) -> str:
    """The message of a ``google.rpc.Status``, or what else can be read of an error's body."""
    for number, value in fields(body):
        if number == 2 and isinstance(value, bytes):
            try:
                return clean(value.decode())
            except UnicodeDecodeError:
                break
    try:
        return clean(body[: 4 * MAX_MESSAGE_CHARACTERS].decode())
    except UnicodeDecodeError:
        return ""


def retry_delay_s(status: bytes) -> float | None:
    """The delay of a ``google.rpc.RetryInfo`` among the details of a ``google.rpc.Status``; None if there is none."""
    for number, detail in fields(status):
        if number != 3 or not isinstance(detail, bytes):
            continue
        content = dict(fields(detail))
        kind, info = content.get(1), content.get(2, b"")
        if not isinstance(kind, bytes) or not kind.endswith(b"/google.rpc.RetryInfo") or not isinstance(info, bytes):
            continue
        duration = dict(fields(info)).get(1, b"")
        if not isinstance(duration, bytes):
            return 0.0
        parts = dict(fields(duration))
        seconds, nanos = parts.get(1, 0), parts.get(2, 0)
        if isinstance(seconds, int) and isinstance(nanos, int) and seconds < 1 << 32 and nanos < 1_000_000_000:
            return seconds + nanos / 1e9
        return 0.0
    return None
