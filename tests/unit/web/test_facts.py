"""What the page says was not seen: every reason has its words, and TLS is told by process and cause."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from onlooker.attach.prober import Outlook
from onlooker.capture.tls import OpaqueTls
from onlooker.kernel.statistics import RunStatistics
from onlooker.web.facts import why_lost
from onlooker.web.invisible import invisible_tls

LOSSES = Path(__file__).parents[3] / "docs/reference/losses.md"


def test_every_reason_has_its_words() -> None:
    kernel_and_user, _, way_out = LOSSES.read_text().partition("## On the way out")
    for reason in re.findall(r"^\| `(\w+)` \|", kernel_and_user, re.MULTILINE):
        assert why_lost(reason) != reason.replace("_", " "), reason
    ways = re.findall(r"^\| `(\w+)` \|", way_out, re.MULTILINE)
    assert len(ways) == 5
    for way in ways:
        assert why_lost(f"traces_{way}").startswith("spans that ")
        assert why_lost(f"metrics_{way}").startswith("points that ")
    assert why_lost("something_new") == "something new"


def test_processes_are_grouped_by_library_and_reason() -> None:
    rows = invisible_tls(
        [Outlook(pid, "rustls 0.23", "/bin/a", False, "no address in common") for pid in range(1, 8)]
        + [Outlook(20, "openssl 3.0", "/lib/s", True, "")],
        {1: OpaqueTls(2, 0, 1000, 2000, 1.0), 3: OpaqueTls(1, 0, 24, 48, 1.0)},
        {1: "proxy", 2: "proxy"},
    )
    assert rows == [
        {"what": "tls_connections", "count": 3, "pids": [1, 2, 3, 4, 5, 6, 7],
         "why": "TLS of proxy (pid 1), proxy (pid 2), pid 3, pid 4, pid 5, 2 more by rustls 0.23: "
         "no address in common; 3 KB went by in connections that ended"}
    ]  # fmt: skip


def test_a_second_library_is_told_once_something_went_by() -> None:
    both = [Outlook(5, "openssl 3.0", "/lib/s", True, ""), Outlook(5, "NSS", "/lib/n", False, "cannot be told apart")]
    assert invisible_tls(both, {}, {}) == []
    (row,) = invisible_tls(both, {5: OpaqueTls(1, 0, 1, 1, 1.0)}, {})
    assert "by NSS: cannot be told apart" in row["why"]


def test_connections_of_processes_that_nothing_is_known_of() -> None:
    opaque = {7: OpaqueTls(4, 1, 3 << 20, 0, 9.0), 8: OpaqueTls(1, 0, 5, 5, 1.0)}
    rows = invisible_tls([Outlook(8, "openssl 3.0", "/lib/s", True, "")], opaque, {7: "curl"})
    assert [(row["count"], row["what"]) for row in rows] == [(4, "tls_connections"), (1, "tls_connections")]
    assert rows[0]["why"] == "TLS of curl (pid 7): its TLS library is not known; 3 MB went by in connections that ended"
    assert "began before its library was found" in rows[1]["why"]


@pytest.mark.skipif(os.geteuid() != 0, reason="measuring programs needs CAP_SYS_ADMIN")
def test_the_kernel_measures_only_while_it_is_asked_to() -> None:
    statistics = RunStatistics()
    assert not statistics.on
    statistics.start()
    statistics.start()
    assert statistics.on, statistics.refused
    statistics.stop()
    statistics.stop()
    assert not statistics.on
