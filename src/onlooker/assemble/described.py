"""Columns of what operations say of themselves: attributes, names, status; without times, sizes and ids.

Receives `Operation` objects of one protocol and role, hands on `Described`.  Drops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import I4, U1, AttributeValue, Column, StatusCode, Text, Values

_FAILED: Final = int(StatusCode.ERROR)
_UNSET: Final = int(StatusCode.UNSET)


class Telling(Protocol):
    """What is read of an operation; `onlooker.protocols.Operation` and `onlooker.protocols.http2.Meaning` have it."""

    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> Mapping[str, AttributeValue]: ...
    @property
    def varying(self) -> Mapping[str, AttributeValue]: ...
    @property
    def error(self) -> str: ...
    @property
    def stream(self) -> bool: ...


@dataclass(slots=True)
class Described:
    """Columns of `onlooker.batches.RequestBatch`."""

    dims: I4
    dim_names: tuple[str, ...]
    name: I4
    status: U1
    stream: NDArray[np.bool_]
    varying: dict[str, Column]

    def take(self, rows: NDArray[np.intp]) -> Described:
        """The columns of the chosen rows, each as often as it is chosen."""
        varying: dict[str, Column] = {
            key: column.take(rows) if isinstance(column, Text) else column[rows] for key, column in self.varying.items()
        }
        return Described(
            self.dims[rows], self.dim_names, self.name[rows], self.status[rows], self.stream[rows], varying
        )


def described(operations: Sequence[Telling], values: Values, known: tuple[str, ...]) -> Described:
    """Make the columns.

    Args:
        operations: At least one.
        values: Where strings are interned.
        known: Attributes of the protocol that make series.
    """
    count = len(operations)
    names = (*known, *(name for name in (semconv.SERVER_ADDRESS, semconv.SERVER_PORT) if name not in known))
    place = {name: i for i, name in enumerate(names)}
    ids = values.id
    # Operations of a kind share their attributes: one look for all of them.
    known_dims: dict[tuple[int, str], list[int]] = {}
    dims_rows: list[list[int]] = []
    error_at = place.get(semconv.ERROR_TYPE)
    for operation in operations:
        key_of_dims = (id(operation.dims), operation.error)
        dim_ids = known_dims.get(key_of_dims)
        if dim_ids is None:
            dim_ids = [0] * len(names)
            for attribute, value in operation.dims.items():
                at = place.get(attribute)
                if at is not None:
                    dim_ids[at] = ids(value)
            if operation.error and error_at is not None and not dim_ids[error_at]:
                dim_ids[error_at] = ids(operation.error)
            known_dims[key_of_dims] = dim_ids
        dims_rows.append(dim_ids)
    return Described(
        np.array(dims_rows, np.int32).reshape(count, len(names)),
        names,
        np.array([ids(o.name) for o in operations], np.int32),
        np.array([_FAILED if o.error else _UNSET for o in operations], np.uint8),
        np.array([o.stream for o in operations], np.bool_),
        _varying(operations),
    )


def _varying(operations: Sequence[Telling]) -> dict[str, Column]:
    count = len(operations)
    texts: dict[str, list[bytes | None]] = {}
    numbers: dict[str, NDArray[np.int64]] = {}
    for i, operation in enumerate(operations):
        for attribute, value in operation.varying.items():
            if type(value) is str:
                column = texts.get(attribute)
                if column is None:
                    column = texts[attribute] = [None] * count
                column[i] = value.encode()
            elif isinstance(value, int) and not isinstance(value, bool):
                known_numbers = numbers.get(attribute)
                if known_numbers is None:
                    known_numbers = numbers[attribute] = np.full(count, -1, np.int64)
                known_numbers[i] = value
            else:
                texts.setdefault(attribute, [None] * count)[i] = _shown(value).encode()
    return {**{attribute: Text.of(column) for attribute, column in texts.items()}, **numbers}


def _shown(value: AttributeValue) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if value in (True, False) else str(value)
