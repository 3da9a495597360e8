"""The JSON API of the page: read-only, bounded, described by ``/api/v1/openapi.json``.

Questions to the store run on one thread of their own, so that a slow disk holds up neither the event loop nor the
capture.  What the page asks for again and again within a second is answered once.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, TypeVar

from aiohttp import web

from onlooker.errors import StoreError
from onlooker.store import Reader, SpanFilter, Store
from onlooker.web import spans_json, views
from onlooker.web.facts import Facts
from onlooker.web.guard import security_fields
from onlooker.web.openapi import description

_T = TypeVar("_T")

_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{1,32}")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|m|h)?")
_UNITS_US: Final = {"ns": 0.001, "us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}
_RANGE: Final = re.compile(r"(\d{1,6})([smhd]?)")
_STATUS: Final = re.compile(r"error|ok|[1-5]xx|[0-9A-Za-z_]{1,32}")
_MAX_LIMIT: Final = 500
_MAX_TEXT: Final = 500
_STREAMS_MAX: Final = 16
_STREAM_S: Final = 1.0
_FRESH_S: Final = ((900, 2.0), (3600, 5.0), (1 << 30, 15.0))
"""How often the overview of a range is told anew: its steps are longer than that anyway."""


def _bad(message: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"error": message}), content_type="application/json")


def _missing(message: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=json.dumps({"error": message}), content_type="application/json")


def answer(data: Any) -> web.Response:
    """JSON, as ASCII: no character of it can mean anything to whoever shows it raw."""
    return web.Response(
        body=json.dumps(data, separators=(",", ":")).encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _range(query: Mapping[str, str]) -> int:
    text = query.get("range", "900")
    match = _RANGE.fullmatch(text)
    if match is None:
        raise _bad("range: a number of seconds, or such as 15m, 1h, 1d")
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]
    return views.nearest_range(seconds)


def _duration_us(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if not text:
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise _bad(f"{name}: such as 200ms or 1.5s; a bare number is in milliseconds")
    return int(float(match[1]) * _UNITS_US[match[2] or "ms"])


def _int(query: Mapping[str, str], name: str, *, high: int = 1 << 62) -> int | None:
    text = query.get(name)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > high:
        raise _bad(f"{name}: a whole number up to {high}")
    return int(text)


def _text(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "")
    if len(text) > _MAX_TEXT:
        raise _bad(f"{name}: at most {_MAX_TEXT} characters")
    return text


class Api:
    """The handlers.

    Args:
        store: Where the answers come from.
        facts: Answers about the agent.
    """

    def __init__(self, store: Store, facts: Facts, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._facts = facts
        self._clock = clock
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._cache: dict[object, tuple[float, asyncio.Future[Any]]] = {}
        self._streams = 0
        self._closing = asyncio.Event()

    def add_routes(self, app: web.Application) -> None:
        """Put the handlers into an application."""
        for path, handler in (
            ("/api/v1/openapi.json", self.openapi),
            ("/api/v1/overview", self.overview),
            ("/api/v1/map", self.map),
            ("/api/v1/services", self.services),
            ("/api/v1/services/{service}", self.service),
            ("/api/v1/traces", self.traces),
            ("/api/v1/traces/{trace}", self.trace),
            ("/api/v1/traces/{trace}/otlp", self.trace_otlp),
            ("/api/v1/agent", self.agent),
            ("/api/v1/config", self.config),
            ("/api/v1/processes", self.processes),
            ("/api/v1/stream", self.stream),
            ("/api/services", self.jaeger_services),
            ("/api/services/{service}/operations", self.jaeger_operations),
            ("/api/operations", self.jaeger_operations),
            ("/api/traces", self.jaeger_traces),
            ("/api/traces/{trace}", self.jaeger_trace),
            ("/api/dependencies", self.jaeger_dependencies),
        ):
            app.router.add_get(path, handler)

    async def close(self) -> None:
        """End the streams."""
        self._closing.set()
        self._facts.close()
        self._asking.shutdown(wait=False, cancel_futures=True)

    # ---- asking ----

    async def _ask(self, question: Callable[[Reader], _T]) -> _T:
        def on_thread() -> _T:
            with self._store.reader() as reader:
                return question(reader)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._asking, on_thread)
        except StoreError as err:
            raise web.HTTPServiceUnavailable(
                text=json.dumps({"error": str(err)}), content_type="application/json"
            ) from err

    async def _ask_once(self, name: object, question: Callable[[Reader], _T], kept_s: float = 1.0) -> _T:
        """As `_ask`, but several visitors of one view share one answer."""
        now = time.monotonic()
        found = self._cache.get(name)
        if found is None or now - found[0] > kept_s or (found[1].done() and found[1].exception() is not None):
            for old in [key for key, (at, _) in self._cache.items() if now - at > 10.0]:
                del self._cache[old]
            found = (now, asyncio.ensure_future(self._ask(question)))
            self._cache[name] = found
        result: _T = await asyncio.shield(found[1])
        return result

    # ---- views ----

    async def openapi(self, _request: web.Request) -> web.Response:
        return answer(description())

    async def _overview(self, seconds: int) -> dict[str, Any]:
        found = await self._ask_once(
            ("overview", seconds), lambda reader: views.overview(reader, seconds, self._clock()), _fresh_s(seconds) / 2
        )
        counts = self._facts.counts()
        listed = [{**row, "processes": counts.get(row["name"], 0)} for row in found["services"]]
        return {**found, "services": listed, "unseen": self._facts.unseen(), "agent": self._facts.brief()}

    async def overview(self, request: web.Request) -> web.Response:
        return answer(await self._overview(_range(request.query)))

    async def map(self, request: web.Request) -> web.Response:
        seconds = _range(request.query)
        return answer(
            await self._ask_once(("map", seconds), lambda reader: views.service_map(reader, seconds, self._clock()))
        )

    async def services(self, _request: web.Request) -> web.Response:
        def question(reader: Reader) -> list[dict[str, Any]]:
            operations: dict[int, set[str]] = {}
            for key in reader.keys().values():
                operations.setdefault(key.service, set()).add(key.name)
            return [
                {"id": row.id, "name": row.full_name, "language": row.language,
                 "operations": sorted(operations.get(row.id, ()))[:500]}
                for row in sorted(reader.services().values(), key=lambda row: row.full_name)
            ]  # fmt: skip

        return answer({"services": await self._ask_once("services", question)})

    async def service(self, request: web.Request) -> web.Response:
        number = request.match_info["service"]
        if not number.isascii() or not number.isdigit() or len(number) > 18:
            raise _bad("service: its number, as in /api/v1/services")
        seconds = _range(request.query)
        found = await self._ask_once(
            ("service", int(number), seconds),
            lambda reader: views.service(reader, int(number), seconds, self._clock()),
        )
        if found is None:
            raise _missing("no such service")
        graph = await self._ask_once(
            ("map", seconds), lambda reader: views.service_map(reader, seconds, self._clock()), 10.0
        )
        return answer(
            {
                **found,
                "callers": views.callers(graph, found["id"]),
                "processes": self._facts.of_service(found["name"]),
            }
        )

    # ---- traces ----

    async def _filter(self, query: Mapping[str, str]) -> SpanFilter | None:
        """What the query asks for; None if it names a service that is not there."""
        service: int | None = None
        if named := _text(query, "service"):
            service = int(named) if named.isascii() and named.isdigit() and len(named) < 19 else None
            if service is None:
                service = await self._ask(lambda reader: reader.service_id(named))
            if service is None:
                return None
        status = _text(query, "status")
        if status and _STATUS.fullmatch(status) is None:
            raise _bad("status: error, ok, 5xx or a status code")
        attributes = []
        for text in query.getall("attribute", []) if hasattr(query, "getall") else []:
            key, equals, value = text[: 2 * _MAX_TEXT].partition("=")
            if not equals:
                raise _bad("attribute: key=value; a value may end in *")
            attributes.append((key, value))
        kinds = {name: number for number, name in spans_json.KINDS.items()}
        kind = _text(query, "kind")
        if kind and kind not in kinds:
            raise _bad(f"kind: one of {', '.join(kinds)}")
        entry = _text(query, "entry")
        if entry not in ("", "0", "1"):
            raise _bad("entry: 1 or 0")
        return SpanFilter(
            entry=entry == "1",
            service=service,
            operation=_text(query, "operation"),
            kind=kinds.get(kind),
            status=status,
            min_us=_duration_us(query, "min"),
            max_us=_duration_us(query, "max"),
            attributes=tuple(attributes[:10]),
            text=_text(query, "q"),
            from_us=_int(query, "from"),
            to_us=_int(query, "to"),
            before_id=_int(query, "before"),
            after_id=_int(query, "after"),
            limit=min(_int(query, "limit") or 50, _MAX_LIMIT),
        )

    async def traces(self, request: web.Request) -> web.Response:
        want = await self._filter(request.query)
        if want is None:
            return answer({"spans": [], "traces": {}, "cursor": None, "complete": True})

        def question(reader: Reader) -> dict[str, Any]:
            found = reader.search(want)
            ids = list(dict.fromkeys(span.trace_id for span in found.spans))
            summaries = reader.summaries([bytes.fromhex(one) for one in ids])
            names = {row.id: row.full_name for row in reader.services().values()}
            return {
                "spans": [spans_json.row(span) for span in found.spans],
                "traces": {
                    key.hex(): {
                        "spans": value["spans"], "errors": value["errors"], "duration_ms": value["duration_us"] / 1e3,
                        "services": [names.get(one, "") for one in value["services"]],
                        "root": {"name": value["root_name"], "service": names.get(value["root_service"], "")},
                    }
                    for key, value in summaries.items()
                },
                "cursor": found.cursor,
                "complete": found.complete,
            }  # fmt: skip

        return answer(await self._ask(question))

    async def _spans(self, request: web.Request) -> list[Any]:
        text = request.match_info["trace"]
        if _TRACE_ID.fullmatch(text) is None:
            raise _bad("a trace id has up to 32 hexadecimal digits")
        trace_id = bytes.fromhex(text.rjust(32, "0"))
        spans = await self._ask(lambda reader: reader.trace(trace_id))
        if not spans:
            raise _missing("no span of this trace is stored: it was not kept, or is too old")
        return spans

    async def trace(self, request: web.Request) -> web.Response:
        return answer(spans_json.trace(await self._spans(request)))

    async def trace_otlp(self, request: web.Request) -> web.Response:
        spans = await self._spans(request)
        response = answer(spans_json.otlp(spans))
        response.headers["Content-Disposition"] = f'attachment; filename="trace-{spans[0].trace_id}.otlp.json"'
        return response

    # ---- the agent ----

    async def agent(self, _request: web.Request) -> web.Response:
        count, oldest = await self._ask_once("spans", lambda reader: reader.span_count(), 5.0)
        facts = self._facts.agent()
        if facts["store"] is not None:
            facts["store"].update(spans=count, oldest_s=oldest)
        return answer(facts)

    async def config(self, _request: web.Request) -> web.Response:
        return answer({"values": self._facts.config()})

    async def processes(self, _request: web.Request) -> web.Response:
        return answer({"processes": self._facts.processes()})

    # ---- live ----

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: ``overview`` every two seconds or more, by its range, ``spans`` as they are stored."""
        topics = set(_text(request.query, "topics").split(",")) if "topics" in request.query else {"overview", "spans"}
        if not topics <= {"overview", "spans"}:
            raise _bad("topics: overview, spans")
        seconds = _range(request.query)
        want = await self._filter(request.query)
        if self._streams >= _STREAMS_MAX:
            raise web.HTTPServiceUnavailable(text="too many live views are open\n")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", **security_fields()}
        )
        self._streams += 1
        try:
            await response.prepare(request)
            async for event, data in self._events(topics, seconds, want):
                text = json.dumps(data, separators=(",", ":"))
                # a reader that does not read holds up only itself, and not for ever
                await asyncio.wait_for(response.write(f"event: {event}\ndata: {text}\n\n".encode()), 10.0)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._streams -= 1
        return response

    async def _events(
        self, topics: set[str], seconds: int, want: SpanFilter | None
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        last: int | None = want.after_id if want is not None else None
        due = 0.0
        while not self._closing.is_set():
            now = time.monotonic()
            if "overview" in topics and now >= due:
                due = now + _fresh_s(seconds)
                try:
                    yield "overview", await self._overview(seconds)
                except web.HTTPServiceUnavailable:
                    yield "trouble", {"error": "the store cannot be read now"}
            if "spans" in topics and want is not None:
                rows, last = await self._new_spans(want, last)
                yield "spans", {"spans": rows}
            try:
                await asyncio.wait_for(self._closing.wait(), _STREAM_S)
            except TimeoutError:
                continue

    async def _new_spans(self, want: SpanFilter, last: int | None) -> tuple[list[dict[str, Any]], int | None]:
        def question(reader: Reader) -> tuple[list[dict[str, Any]], int | None]:
            newest = reader.last_span_id()
            if last is None:  # begin with what is there
                found = reader.search(replace(want, limit=min(want.limit, 50)))
            elif newest <= last:
                return [], last
            else:
                found = reader.search(replace(want, after_id=last, limit=100))
            return [spans_json.row(span) for span in found.spans], newest

        try:
            return await self._ask(question)
        except web.HTTPServiceUnavailable:
            return [], last

    # ---- what Jaeger's clients ask for ----

    async def jaeger_services(self, _request: web.Request) -> web.Response:
        names = await self._ask(lambda reader: sorted(row.full_name for row in reader.services().values()))
        return answer(_jaeger(names))

    async def jaeger_operations(self, request: web.Request) -> web.Response:
        named = request.match_info.get("service") or _text(request.query, "service")

        def question(reader: Reader) -> list[Any]:
            service = reader.service_id(named)
            return sorted({key.name for key in reader.keys(service).values()}) if service is not None else []

        names = await self._ask(question)
        if request.path == "/api/operations":
            return answer(_jaeger([{"name": name, "spanKind": ""} for name in names]))
        return answer(_jaeger(names))

    async def jaeger_traces(self, request: web.Request) -> web.Response:
        query = request.query
        if ids := query.getall("traceID", []):
            wanted = [one for one in ids[:20] if _TRACE_ID.fullmatch(one)]
            return answer(_jaeger(await self._ask(lambda reader: _jaeger_of(reader, wanted))))
        renamed = {
            "service": _text(query, "service"), "operation": _text(query, "operation"),
            "min": query.get("minDuration", ""), "max": query.get("maxDuration", ""),
            "from": query.get("start", ""), "to": query.get("end", ""),
        }  # fmt: skip
        tags: dict[str, Any] = {}
        if "tags" in query:
            try:
                tags = json.loads(_text(query, "tags"))
            except ValueError as err:
                raise _bad("tags: a JSON object") from err
            if not isinstance(tags, dict):
                raise _bad("tags: a JSON object")
        want = await self._filter({key: value for key, value in renamed.items() if value and value != "all"})
        if want is None:
            return answer(_jaeger([]))
        status = "error" if str(tags.pop("error", "")).lower() == "true" else ""
        limit = min(_int(query, "limit") or 20, 200)
        want = replace(
            want, status=status, attributes=tuple((str(k), str(v)) for k, v in list(tags.items())[:10]), limit=limit * 4
        )

        def question(reader: Reader) -> list[Any]:
            found = reader.search(want)
            return _jaeger_of(reader, list(dict.fromkeys(span.trace_id for span in found.spans))[:limit])

        return answer(_jaeger(await self._ask(question)))

    async def jaeger_trace(self, request: web.Request) -> web.Response:
        return answer(_jaeger([spans_json.jaeger(await self._spans(request))]))

    async def jaeger_dependencies(self, request: web.Request) -> web.Response:
        lookback_ms = _int(request.query, "lookback") or 3_600_000
        seconds = views.nearest_range(lookback_ms / 1000)
        found = await self._ask_once(("map", seconds), lambda reader: views.service_map(reader, seconds, self._clock()))
        names = {node["id"]: node["name"] for node in found["nodes"]}
        return answer(
            _jaeger(
                [
                    {"parent": names[edge["from"]], "child": names[edge["to"]], "callCount": edge["count"]}
                    for edge in found["edges"]
                ]
            )
        )


def _fresh_s(seconds: int) -> float:
    return next(fresh for limit, fresh in _FRESH_S if seconds <= limit)


def _jaeger(data: list[Any]) -> dict[str, Any]:
    return {"data": data, "total": len(data), "limit": 0, "offset": 0, "errors": None}


def _jaeger_of(reader: Reader, trace_ids: list[str]) -> list[Any]:
    found = (reader.trace(bytes.fromhex(one.rjust(32, "0"))) for one in trace_ids)
    return [spans_json.jaeger(spans) for spans in found if spans]
