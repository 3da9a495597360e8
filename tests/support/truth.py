"""Ground truth: which requests were really made, and how the spans that the agent reports compare with them.

`plan` makes a seeded mix of requests, each with a path of its own.  A client of the zoo carries it out and prints what
happened by its own clock; `compare` holds the agent's spans against that, one to one, and says every difference.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BIG_BYTES = (1_000, 65_536, 1_000_000)
SLEEP_MS = (5, 20, 60)
# Page, and how often it is asked for.
PAGES: Mapping[str, int] = {
    "items": 68, "fail": 6, "missing": 6, "echo": 8, "echo_chunked": 4, "sleep": 2, "big": 4, "stream": 2,
}  # fmt: skip
STATUS = {"fail": 500, "missing": 404}

Span = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to be made.

    Attributes:
        target: Path and maybe a query, as in the request line.
        status: What a correct server answers.
        judged: Whether its duration counts: the first requests of a program pay for its warming up.
    """

    n: int
    method: str
    target: str
    body_bytes: int
    chunked: bool
    status: int
    judged: bool

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def line(self) -> str:
        """The request as the programs of the zoo read it."""
        return f"{self.n}\t{self.method}\t{self.target}\t{self.body_bytes}\t{int(self.chunked)}\n"


@dataclass(frozen=True, slots=True)
class TrueRequest:
    """One request that was made, by the clock of who made it.

    Attributes:
        status: 0 where no response came; ``error`` then says why.
        start_ns: CLOCK_MONOTONIC; None where the program's clock does not tell.
        bytes: Body of the response.
    """

    n: int
    method: str
    path: str
    status: int
    duration_ns: int
    start_ns: int | None = None
    bytes: int = 0
    error: str = ""
    judged: bool = True

    def __str__(self) -> str:
        ended = self.error or str(self.status)
        return f"#{self.n} {self.method} {self.path} -> {ended} in {self.duration_ns / 1e6:.2f} ms"


def plan(
    seed: int, n: int, *, pages: Collection[str] = tuple(PAGES), warm_up: int = 20, run: str = ""
) -> list[PlannedRequest]:
    """A mix of ``n`` requests that depends on nothing but the arguments.

    Args:
        seed: Same seed, same plan.
        n: How many.
        pages: Which of `PAGES` the server knows.
        warm_up: How many of the first requests are not judged by their duration.
        run: Goes into each path; by default made from the seed.
    """
    unknown = set(pages) - set(PAGES)
    if unknown:
        raise ValueError(f"no such pages: {sorted(unknown)}; there are {list(PAGES)}")
    chance = random.Random(seed)
    run = run or f"{seed:x}"
    names = [page for page in PAGES if page in pages]
    chosen = chance.choices(names, [PAGES[page] for page in names], k=n)
    return [_planned(page, i, f"{run}-{i}", chance, judged=i >= warm_up) for i, page in enumerate(chosen)]


def _planned(page: str, n: int, unique: str, chance: random.Random, *, judged: bool) -> PlannedRequest:
    method, body_bytes, chunked = "GET", 0, False
    match page:
        case "echo" | "echo_chunked":
            method, body_bytes, chunked = "POST", chance.choice((1, 17, 1_000, 20_000, 200_000)), page != "echo"
            target = f"/echo/{unique}"
        case "sleep":
            target = f"/sleep/{chance.choice(SLEEP_MS)}/{unique}"
        case "big":
            target = f"/big/{chance.choice(BIG_BYTES)}/{unique}"
        case _:
            target = f"/{page}/{unique}"
            if chance.random() < 0.1:
                target += f"?page={chance.randrange(100)}"
    return PlannedRequest(n, method, target, body_bytes, chunked, STATUS.get(page, 200), judged)


def truth_of(plan: Sequence[PlannedRequest], lines: Iterable[Mapping[str, Any]]) -> list[TrueRequest]:
    """What a program printed, in the order of the plan.

    Raises:
        ValueError: The program did not report each planned request exactly once.
    """
    by_number: dict[int, TrueRequest] = {}
    planned = {request.n: request for request in plan}
    for line in lines:
        n = int(line["n"])
        if n in by_number or n not in planned:
            raise ValueError(f"request {n} is reported twice or was never planned")
        start = line.get("start_ns")
        duration = int(line["duration_ns"]) if "duration_ns" in line else int(line["end_ns"]) - int(line["start_ns"])
        by_number[n] = TrueRequest(
            n, planned[n].method, planned[n].path, int(line["status"]), duration, start, int(line.get("bytes", 0)),
            line.get("error", ""), planned[n].judged,
        )  # fmt: skip
    if absent := planned.keys() - by_number.keys():
        raise ValueError(f"{len(absent)} planned requests are not reported, the first is {min(absent)}")
    return [by_number[request.n] for request in plan]


def select(spans: Iterable[Span], *, kind: str | None = None, pids: Collection[int] | None = None) -> list[Span]:
    """The spans of one kind and of some processes."""
    return [
        span
        for span in spans
        if (kind is None or str(span["kind"]).lower() == kind) and (pids is None or span["pid"] in pids)
    ]


@dataclass(slots=True)
class Report:
    """How spans and truth differ.

    Attributes:
        missing: Made, but no span has its path.
        invented: Spans of paths that nobody asked for.
        repeated: Second and further spans of a path that was asked for once.
        wrong: Pairs whose method, status or error differ, with the name of what differs.
        late: Pairs whose durations differ by more than the tolerance; worst first.
        outside: Pairs whose span does not lie inside the client's interval (only where both clocks are known).
        judged: How many durations were compared.
    """

    requests: int
    missing: list[TrueRequest] = field(default_factory=list)
    invented: list[Span] = field(default_factory=list)
    repeated: list[Span] = field(default_factory=list)
    wrong: list[tuple[str, TrueRequest, Span]] = field(default_factory=list)
    late: list[tuple[TrueRequest, Span]] = field(default_factory=list)
    outside: list[tuple[TrueRequest, Span]] = field(default_factory=list)
    judged: int = 0

    @property
    def share_within(self) -> float:
        """Share of the judged durations that are within tolerance; 1 if none was judged."""
        return 1 - len(self.late) / self.judged if self.judged else 1.0

    def problems(self, *, min_share: float = 0.99, declared_lost: int = 0) -> list[str]:
        """Each difference that matters, a paragraph each.  Empty: the spans tell the truth."""
        found = []
        if len(self.missing) != declared_lost:
            declared = f" ({declared_lost} were declared lost)" if declared_lost else ""
            found.append(
                _listed(f"{len(self.missing)} of {self.requests} requests have no span{declared}", self.missing)
            )
        for what, spans in (("were never made", self.invented), ("are reported more than once", self.repeated)):
            if spans:
                found.append(_listed(f"{len(spans)} reported requests {what}", spans))
        for name in dict.fromkeys(row[0] for row in self.wrong):
            rows = [f"{true}, but the span says {_shown(span)}" for what, true, span in self.wrong if what == name]
            found += [_listed(f"{len(rows)} spans have a wrong {name}", rows)]
        if self.share_within < min_share:
            found.append(
                _listed(
                    f"only {self.share_within:.2%} of {self.judged} durations are right (wanted {min_share:.2%})",
                    [f"{true}, but the span took {span['duration_ns'] / 1e6:.2f} ms" for true, span in self.late],
                )
            )
        if self.judged and len(self.outside) > (1 - min_share) * self.judged:
            found.append(
                _listed(
                    f"{len(self.outside)} spans do not lie inside the client's time",
                    [f"{true} from {true.start_ns}, span from {span['start_ns']}" for true, span in self.outside],
                )
            )
        return found

    def check(self, *, min_share: float = 0.99, declared_lost: int = 0) -> None:
        """Raises AssertionError with all problems, if there are any."""
        if problems := self.problems(min_share=min_share, declared_lost=declared_lost):
            raise AssertionError("\n".join(problems))

    def __str__(self) -> str:
        return (
            f"{self.requests} requests: {len(self.missing)} missing, {len(self.invented)} invented,"
            f" {len(self.repeated)} repeated, {len(self.wrong)} wrong,"
            f" {self.share_within:.2%} of {self.judged} durations within tolerance"
        )


def compare(
    truth: Sequence[TrueRequest],
    spans: Iterable[Span],
    *,
    duration_abs_ms: float = 2,
    duration_rel: float = 0.02,
    same_clock: bool = False,
) -> Report:
    """Holds spans against the truth, matched one to one by path.

    Args:
        truth: What was done; each path must be its own.
        spans: Mappings with ``method``, ``path`` (a query is ignored), ``status`` (0 or None: none was seen),
            ``duration_ns`` and ``error`` (falsy: none); ``start_ns`` only with ``same_clock``.
        duration_abs_ms: A duration is right within this many ms or
        duration_rel: within this share of what the client's clock saw, whichever is more.  A server's span lies inside
            the client's interval and is shorter by the client's own work: time servers with the "c" client, whose
            share is some microseconds.
        same_clock: ``start_ns`` of the spans is CLOCK_MONOTONIC too: also ask that each span lies inside its interval.
    """
    by_path = {request.path: request for request in truth}
    if len(by_path) != len(truth):
        raise ValueError("two requests have the same path, so they cannot be told apart")
    report = Report(len(truth))
    seen: set[str] = set()
    for span in spans:
        path = str(span["path"]).partition("?")[0]
        true = by_path.get(path)
        if true is None:
            report.invented.append(span)
        elif path in seen:
            report.repeated.append(span)
        else:
            seen.add(path)
            _compare_pair(report, true, span, duration_abs_ms * 1e6, duration_rel, same_clock)
    report.missing = [request for request in truth if request.path not in seen]
    report.late.sort(key=lambda pair: -abs(pair[1]["duration_ns"] - pair[0].duration_ns))
    return report


def _compare_pair(
    report: Report, true: TrueRequest, span: Span, abs_ns: float, relative: float, same_clock: bool
) -> None:
    if span["method"] != true.method:
        report.wrong.append(("method", true, span))
    if (span.get("status") or 0) != true.status:
        report.wrong.append(("status", true, span))
    elif not true.status and not span.get("error"):
        report.wrong.append(("error", true, span))
    if not true.judged:
        return
    report.judged += 1
    tolerance = max(abs_ns, relative * true.duration_ns)
    if abs(span["duration_ns"] - true.duration_ns) > tolerance:
        report.late.append((true, span))
    if same_clock and true.start_ns is not None:
        before = true.start_ns - span["start_ns"]
        after = span["start_ns"] + span["duration_ns"] - true.start_ns - true.duration_ns
        if max(before, after) > tolerance:
            report.outside.append((true, span))


def _shown(span: Span) -> str:
    ended = span.get("error") or span.get("status")
    return f"{span['method']} {span['path']} -> {ended} in {span['duration_ns'] / 1e6:.2f} ms (pid {span.get('pid')})"


def _listed(headline: str, rows: Sequence[Any], limit: int = 5) -> str:
    lines = [f"  {row if isinstance(row, str | TrueRequest) else _shown(row)}" for row in rows[:limit]]
    if len(rows) > limit:
        lines.append(f"  and {len(rows) - limit} more")
    return "\n".join([f"{headline}:", *lines])
