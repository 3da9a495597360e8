"""Where a value comes from, and what is worth telling about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where a value comes from.

    Attributes:
        source: ``file``, ``environment``, ``flag`` or ``derived``.
        place: File and line, variable, flag, or the key that it was derived from.
    """

    source: str
    place: str

    def __str__(self) -> str:
        return f"derived from {self.place}" if self.source == "derived" else self.place


@dataclass(frozen=True)
class Note:
    """One thing that the person who wrote the configuration should know; nothing is wrong with it."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"
