"""Logging: one handler on standard error, lines of text or of JSON."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from onlooker.config import Loaded

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
_logger = logging.getLogger("onlooker")


class _Text(logging.Formatter):
    """``time level logger: message``, on one line whatever the message holds."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        line = f"{when}.{int(record.msecs):03d}Z {record.levelname:<7} {record.name}: {_one_line(record.getMessage())}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    """One JSON object a line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _one_line(text: str) -> str:
    """Names of processes and files get into messages: nothing of them may forge a line or steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def set_up_logging(level: str, form: str, stream: TextIO) -> logging.Handler:
    """Give the ``onlooker`` loggers a level and a handler, in place of one from an earlier call.

    Args:
        level: One of ``onlooker.config.model.LOG_LEVELS``.
        form: ``text`` or ``json``.
        stream: Where lines go.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    for old in [one for one in _logger.handlers if isinstance(one.formatter, (_Text, _Json))]:
        _logger.removeHandler(old)
    _logger.addHandler(handler)
    _logger.setLevel(_LEVELS[level])
    _logger.propagate = False
    return handler


def print_configuration(loaded: Loaded, out: TextIO) -> None:
    """Print the effective configuration where ``log_config`` asks for it."""
    if not loaded.config.log_config:
        return
    from onlooker.config.show import as_yaml, effective

    if loaded.config.log_config == "json":
        out.write(json.dumps(effective(loaded, everything=True)) + "\n")
    else:
        out.write(as_yaml(loaded, everything=True))
