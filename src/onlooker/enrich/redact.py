"""Secrets in query strings: receives ``url.query`` and ``url.full``, hands them on without the values of secret keys.

Only spans carry queries, so this runs on rows that become spans: those that the sampler kept, and what the store looks
at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from onlooker import semconv
from onlooker.batches import Column, Text

REDACTED: Final = b"REDACTED"

SENSITIVE_QUERY_PARAMS: Final = (
    "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId", "Signature", "SecurityToken",
    "X-Goog-Signature", "sig", "token", "access_token", "refresh_token", "id_token", "jwt", "session", "sid",
    "api_key", "apikey", "client_secret", "secret", "password", "pass", "pwd", "reset_token", "invite_token",
    "verify_token", "otp", "totp", "mfa_code", "verification_code", "SAMLResponse", "assertion", "card", "cc", "pan",
    "cvv", "ssn", "tax_id",
)  # fmt: skip

_USERINFO: Final = re.compile(rb"^([A-Za-z][A-Za-z0-9+.\-]*://)[^/?#@]*@")


class QueryRedactor:
    """Replaces the values of secret query parameters; keys are compared without regard to case and percent-encoding.

    Args:
        add, remove: ``attributes.sensitive_query_params`` of the configuration, applied to `SENSITIVE_QUERY_PARAMS`.
    """

    def __init__(self, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        gone = {name.lower() for name in remove}
        names = {name.lower() for name in (*SENSITIVE_QUERY_PARAMS, *add)} - gone
        self._names = frozenset(name.encode() for name in names if name)
        listed = b"|".join(re.escape(name) for name in sorted(self._names))
        # One look decides for the most common query, which has neither a secret key nor an encoded one.
        self._suspicious = re.compile(rb"(?i)%[^&;=]*=|\+[^&;=]*=|(?:^|[&;?#])(?:" + (listed or rb"(?!)") + rb")=")

    def redact(self, query: bytes) -> bytes:
        """The query with `REDACTED` in place of secret values; the very object if there are none."""
        if self._suspicious.search(query) is None:
            return query
        out = []
        changed = False
        for part in re.split(rb"([&;])", query):
            key, equals, value = part.partition(b"=")
            if equals and value and self._is_secret(key):
                changed = True
                out.append(key + b"=" + REDACTED)
            else:
                out.append(part)
        return b"".join(out) if changed else query

    def redact_url(self, url: bytes) -> bytes:
        """A whole URL: credentials before the host, and its query."""
        bare = _USERINFO.sub(rb"\1REDACTED:REDACTED@", url, count=1)
        head, mark, query = bare.partition(b"?")
        if not mark:
            return bare
        query, fragment_mark, fragment = query.partition(b"#")
        return head + mark + self.redact(query) + fragment_mark + fragment

    def _is_secret(self, key: bytes) -> bool:
        if b"%" in key or b"+" in key:
            key = unquote_to_bytes(key.replace(b"+", b" ")).strip()
        return key.lower() in self._names

    def apply(self, varying: dict[str, Column], keep: NDArray[np.bool_] | None = None) -> None:
        """Redact ``url.query`` and ``url.full``, in place.

        Args:
            varying: Columns of a batch.
            keep: ``(n,)``, the rows that anybody will see; all if None.
        """
        for name, redact in ((semconv.URL_QUERY, self.redact), (semconv.URL_FULL, self.redact_url)):
            column = varying.get(name)
            if isinstance(column, Text):
                varying[name] = _rewrite(column, redact, keep)


def _rewrite(text: Text, redact: Callable[[bytes], bytes], keep: NDArray[np.bool_] | None) -> Text:
    present = text.length > 0
    rows = np.flatnonzero(present if keep is None else present & keep)
    if not rows.size:
        return text
    pool = np.ascontiguousarray(text.pool)
    view = pool.data
    seen: dict[bytes, bytes] = {}
    changed_rows: list[int] = []
    changed: list[bytes] = []
    starts, lengths = text.start[rows].tolist(), text.length[rows].tolist()
    for row, start, length in zip(rows.tolist(), starts, lengths, strict=True):
        before = bytes(view[start : start + length])
        after = seen.get(before)
        if after is None:
            after = seen[before] = redact(before)
        if after is not before and after != before:
            changed_rows.append(row)
            changed.append(after)
    if not changed_rows:
        return text
    sizes = np.array([len(value) for value in changed], np.int32)
    start = text.start.copy()
    length = text.length.copy()
    start[changed_rows] = pool.size + np.cumsum(sizes) - sizes
    length[changed_rows] = sizes
    return Text(np.concatenate([pool, np.frombuffer(b"".join(changed), np.uint8)]), start, length)
