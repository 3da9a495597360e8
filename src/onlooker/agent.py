"""The agent: wires the stages together, and nothing else.

Two threads.  *Capture* drains the rings and takes each batch through the sentence; *main* runs the event loop: signals,
the web server, periodic export of metrics.  Exporters have a worker each and never hold up either.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from onlooker import __version__
from onlooker.aggregate.aggregator import Aggregator
from onlooker.assemble.exchanges import Exchanges
from onlooker.assemble.http1 import Http1
from onlooker.assemble.segments import Segments
from onlooker.batches import Identities, RequestBatch, SpanKind, Values
from onlooker.capture.capture import Capture, Records
from onlooker.capture.clock import UnixClock
from onlooker.config import Config, Loaded, Selector
from onlooker.config.reload import taken_over
from onlooker.confinement import confine
from onlooker.discover.naming import Host
from onlooker.discover.report import open_proc
from onlooker.discover.watch import Watcher
from onlooker.enrich.identify import Identifier
from onlooker.enrich.peers import Peers
from onlooker.enrich.redact import QueryRedactor
from onlooker.enrich.routes import Routes
from onlooker.errors import AgentError, ConfigError
from onlooker.export.otlp_traces import SpanEncoder
from onlooker.export.printer import Printer, PrintFormat
from onlooker.export.span_buffer import SpanBuffer
from onlooker.light import release_memory, release_start, trim_heap, unmap_files
from onlooker.observe import LiveView, own_metrics, process_age_s, rss_bytes
from onlooker.overload import Overload
from onlooker.plaintext import Plaintext
from onlooker.protocols import registry
from onlooker.randomness import SystemRandom
from onlooker.sample.samplers import Samplers, make_sampler
from onlooker.settings import (
    aggregate_options,
    exporters,
    protocol_options,
    route_options,
    span_wait_s,
    store_options,
    traced_protocols,
)
from onlooker.store import Store
from onlooker.web.server import WebServer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log: Final = logging.getLogger("onlooker")

BATCH_ROWS: Final = 3000
"""Records that a round of draining should find: enough to spread numpy's fixed cost, little enough to stay in cache."""

INTERVAL_MIN_S: Final = 0.005
INTERVAL_MAX_S: Final = 1.0
"""A round costs about as much as 500 requests; a burst meanwhile wakes the reader, see `capture`."""

SPAN_BYTES: Final = 512
"""Of an encoded span, generously."""

TRIM_S: Final = 10.0
"""How often the heap gives back what lies free between columns that are in use: half of what a busy second takes."""

SETTLED_S: Final = 90.0
"""By then everything has run once: the first export of metrics is after a minute."""

UNMAP_S: Final = 600.0
"""How often pages of programs and libraries go from then on: what ran once, such as a view, would stay mapped."""

Sink = Callable[[RequestBatch], None]


def make_samplers(config: Config) -> Samplers:
    """By ``otel_traces_export.sampler``."""
    sampler = config.otel_traces_export.sampler
    return Samplers(make_sampler(sampler.name, sampler.arg))


def say_once() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Of connections that cannot be accepted one line a minute; the event loop would write a page for each attempt."""
    said_s = -60.0

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_s
        err = context.get("exception")
        if not (isinstance(err, OSError) and err.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif time.monotonic() > said_s + 60:
            said_s = time.monotonic()
            log.warning("no connection can be accepted for now: %s", err.strerror)

    return handle


class Pipeline:
    """The sentence, for one batch at a time; only the capture thread calls it.

    Attributes:
        sinks: Take each batch at its end; redacted are the rows with ``keep``, if `shows_spans`.
        settle: Called at the end of each round.
        shows_spans: Whether a sink hands on what stands in spans.
        requests: Rows that came out of `assemble`.
        busy_ns: CPU time of this thread spent here.
    """

    def __init__(
        self, loaded: Loaded, capture: Capture, watcher: Watcher, plaintext: Plaintext, identities: Identities
    ) -> None:
        config = loaded.config
        rng = cast("np.random.Generator", SystemRandom())  # all that the stages ask of one
        self.values = Values()
        self.identities = identities
        self.capture = capture
        self.watcher = watcher
        self.plaintext = plaintext
        self.clock = UnixClock()
        self.http1 = Http1(self.values, rng=rng)
        options = protocol_options(config)
        self.segments = Segments(
            self.values,
            make_parser=lambda protocol, role: registry.make_parser(protocol, role, options=options),
            dim_names=registry.dim_names,
            name_of=registry.name_of,
            rng=rng,
            exchanges=Exchanges(self.values, dim_names=registry.dim_names, rng=rng, options=options),
        )
        self.identifier = Identifier()
        self.peers = Peers(self.values, rng=rng, cache_len=config.name_resolver.cache_len)
        self._rng = rng
        self.routes = Routes(route_options(config), self.values, rng=rng)
        query = config.attributes.sensitive_query_params
        self.redactor = QueryRedactor(add=query.add, remove=query.remove)
        self.aggregator = Aggregator(
            aggregate_options(loaded), identities, self.values, rng=rng, clock_unix_ns=time.time_ns
        )
        self.samplers = make_samplers(config)
        limits = config.limits
        self.overload = Overload(
            cpu_percent=limits.cpu_percent, memory_bytes=limits.memory, rss_bytes=rss_bytes, relieve=release_memory
        )
        self.sinks: list[Sink] = []
        self.settle: list[Callable[[], None]] = []
        self.shows_spans = False
        self.requests = 0
        self.busy_ns = 0

    def use_routes(self, config: Config) -> None:
        """Find routes by another section ``routes`` from now on."""
        ignored = self.routes.ignored
        self.routes = Routes(route_options(config), self.values, rng=self._rng)
        self.routes.ignored = ignored

    def use_sampler(self, config: Config) -> None:
        """Sample by another ``otel_traces_export.sampler`` from now on."""
        before, self.samplers = self.samplers, make_samplers(config)
        self.samplers.seen, self.samplers.kept = before.seen, before.kept

    def run(self, records: Records) -> int:
        """Take one round of records through all stages; gives the number of records."""
        if records.process is not None:
            self.take_processes(records.process)
        offset_ns, now_mono_ns = self.clock.offset_ns(), time.monotonic_ns()
        batch = self.http1.requests(
            records.http, records.http_long, records.http_text, offset_ns=offset_ns, now_mono_ns=now_mono_ns
        )
        batches = [] if batch is None else [batch]
        if self.http1.upgrades:
            self.segments.upgraded(self.http1.upgrades)
            self.http1.upgrades = {}
        segments = self.segments.requests(
            records.segments, records.redis, is_part=records.is_part, offset_ns=offset_ns, now_mono_ns=now_mono_ns
        )
        # who answers comes first: `peers` learns from it whom the others ask
        batches += sorted(segments, key=lambda batch: int(batch.kind[0]) != SpanKind.SERVER)
        for batch in batches:
            self.requests += batch.requests()
            self._take_through(batch)
        for settle in self.settle:
            settle()
        parts = (records.http, records.http_long, records.redis, *records.segments)
        return sum(len(part) for part in parts if part is not None)

    def take_processes(self, rows: NDArray[Any]) -> None:
        """Take in process records alone."""
        self.watcher.apply(rows)
        self.plaintext.apply(rows)

    def _take_through(self, batch: RequestBatch) -> None:
        services = self.identities.services
        batch = self.identifier.identify(batch, self.identities)
        batch = self.peers.apply(batch, services)
        batch = self.routes.apply(batch, services)
        batch = self.aggregator.observe(batch)
        self.overload.apply(batch)
        batch.keep = self.samplers.keep(batch, services)
        self.aggregator.observe_kept(batch)
        if self.shows_spans:
            self.redactor.apply(batch.varying, batch.keep)
        for sink in self.sinks:
            sink(batch)


class Agent:
    """A run of onlooker, from start to the last drained record."""

    def __init__(self, loaded: Loaded, *, command: list[str], load_again: Callable[[], Loaded] | None = None) -> None:
        self.loaded = loaded
        self._command = command
        self._load_again = load_again
        self._loaded_anew: Loaded | None = None
        self._command_selectors: tuple[Selector, ...] = ()
        self.child: subprocess.Popen[bytes] | None = None
        self.capture = Capture(hook=loaded.config.ebpf.capture_hook)
        self.plaintext = Plaintext(self.capture)
        self.identities = Identities()
        self.started_unix_ns = time.time_ns()
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.interval_s = 0.02
        self._trimmed_s, self._trimmed_at = time.monotonic(), 0
        self._unmap_due_s = time.monotonic() + SETTLED_S
        self.rounds = self.records = 0
        self._gate: int | None = None
        self._wake_main: Callable[[], object] = lambda: None
        self._send_waiting: Callable[[], None] = lambda: None

    # ---- start ----

    def start(self) -> None:
        """Load, attach, find the processes, begin to capture.

        Raises:
            AgentError: something that the configuration asks for cannot be had.
        """
        config = self.loaded.config
        exporting = exporters(config)
        if self._command:
            self.loaded = self._start_command()
        self.capture.start()
        log.info("socket traffic is seen by: %s", self.capture.hook)
        for loss in self.capture.degraded:
            log.warning("this kernel's best hook is %s: %s", self.capture.hook, loss)
        host = Host.read(
            sdk_version=__version__,
            name=config.attributes.instance_id.override_hostname,
            host_id=config.attributes.host_id.override,
            extra=dict(self.loaded.resource),
        )
        self.watcher = Watcher(
            open_proc(),
            self.loaded.selection,
            self.identities,
            self.plaintext,
            host,
            own_pid=os.getpid(),
            service_name=config.service_name,
            service_namespace=config.service_namespace,
            system_paths=config.discovery.excluded_linux_system_paths,
            min_age_s=config.discovery.min_process_age,
            rescan_s=config.discovery.poll_interval or 10.0,
            on_gone=self._services_gone,
        )
        self.pipeline = Pipeline(self.loaded, self.capture, self.watcher, self.plaintext, self.identities)
        self.spans, self.metrics = exporting
        self._connect_sinks()
        self.own = own_metrics(self)
        self.live_view = LiveView(self)
        self.watcher.start()
        self.plaintext.start()
        for exporter in (self.spans, self.metrics):
            if exporter is not None:
                exporter.start()
        self._thread = threading.Thread(target=self._capture_loop, name="capture", daemon=True)
        self._thread.start()
        self._open_gate()

    def _connect_sinks(self) -> None:
        pipeline, config = self.pipeline, self.loaded.config
        table = pipeline.aggregator.table
        # without a page nobody could look at it
        self.store = None
        if config.web.port:
            # it looks at rows that the sampler did not keep, too
            self.store = Store(store_options(config), table, self.identities.service, redact=pipeline.redactor.apply)
        if self.store is not None:
            pipeline.sinks.append(self.store.put)
            self.store.start()
        if self.spans is not None:
            # a request that is larger than the queue could never wait in it
            fits = max(config.limits.span_queue_bytes // (4 * SPAN_BYTES), 1)
            encoder = self.encoder = SpanEncoder(
                version=__version__, max_spans=min(config.otel_traces_export.batch_max_size, fits)
            )
            spans = self.spans
            wanted = traced_protocols(config)
            self.span_buffer = buffer = SpanBuffer(encoder, max_age_s=span_wait_s(config))

            def export(batch: RequestBatch) -> None:
                protocol = int(batch.protocol[0]) if len(batch) else 0  # one a batch
                if protocol in wanted:
                    spans.put(buffer.put(batch, table, self.identities.services, pipeline.values))

            def settle(*, now: bool = False) -> None:
                if buffer.rows:
                    spans.put(buffer.take(table, self.identities.services, pipeline.values, now=now))

            pipeline.sinks.append(export)
            pipeline.settle.append(settle)
            pipeline.shows_spans = True
            self._send_waiting = functools.partial(settle, now=True)
        if config.trace_printer != "disabled":
            printer = self.printer = Printer(PrintFormat(config.trace_printer), sys.stdout)
            pipeline.shows_spans = True
            pipeline.sinks.append(lambda batch: printer.print(batch, table, self.identities.services, pipeline.values))

    def _start_command(self) -> Loaded:
        """Start the command behind a gate, so that it is watched from its first instruction on."""
        read_end, self._gate = os.pipe()
        shell = f'read -r _ <&{read_end}; exec {read_end}<&-; exec "$@"'
        try:
            self.child = subprocess.Popen(
                ["/bin/sh", "-c", shell, "sh", *self._command], pass_fds=(read_end,), start_new_session=True
            )
        except OSError as err:
            raise ConfigError(f"cannot start {self._command[0]}: {err}", place="command line") from err
        finally:
            os.close(read_end)
        pid = self.child.pid
        selector = Selector(kind="glob", source="the command line", pids=((pid, pid),), descendants=True)
        self._command_selectors = (selector,)
        return self._with_command(self.loaded)

    def _with_command(self, loaded: Loaded) -> Loaded:
        """What is asked for, and the command that was started."""
        selectors = (*loaded.selection.selectors, *self._command_selectors)
        return replace(loaded, selection=replace(loaded.selection, selectors=selectors))

    def _open_gate(self) -> None:
        if self._gate is not None:
            with contextlib.suppress(OSError):
                os.write(self._gate, b"\n")
            os.close(self._gate)
            self._gate = None

    def _services_gone(self, services: list[int]) -> None:
        for service in services:
            self.pipeline.routes.forget_service(service)

    # ---- capture ----

    def _capture_loop(self) -> None:
        try:
            look_again = drain = time.monotonic()
            while not self._stop.is_set():
                now = time.monotonic()
                if self.capture.wait(min(drain, look_again) - now) or time.monotonic() >= drain:
                    self.round()
                    drain = time.monotonic() + (0.0 if self.capture.is_behind else self._pause_s())
                else:  # programs start and end all the time; requests need not be drained for that
                    records = self.capture.drain_processes()
                    if records is not None:
                        self.pipeline.take_processes(records)
                if self._loaded_anew is not None:
                    self._take_configuration()
                if time.monotonic() >= look_again:
                    look_again = time.monotonic() + min(self.watcher.tick(), 10.0)
                self._trim()
        except BaseException as err:
            log.exception("capture failed")
            self.failure = err
            self._stop.set()
            self._wake_main()

    def round(self) -> None:
        """Drain once, and set the time until the next round by what was found."""
        began = time.thread_time_ns()
        found = self.pipeline.run(self.capture.drain())
        self.pipeline.busy_ns += time.thread_time_ns() - began
        self.rounds += 1
        self.records += found
        wanted = self.interval_s * (BATCH_ROWS / found if found else 2.0)
        # quick to shrink, slow to grow: a burst must not wait for its end
        self.interval_s = min(max(min(wanted, self.interval_s * 1.5), INTERVAL_MIN_S), INTERVAL_MAX_S)
        self.pipeline.overload.look()

    def _trim(self) -> None:
        now = time.monotonic()
        if now - self._trimmed_s >= TRIM_S and self.pipeline.requests != self._trimmed_at:
            self._trimmed_s, self._trimmed_at = now, self.pipeline.requests
            trim_heap()
        if now >= self._unmap_due_s:
            self._unmap_due_s = now + UNMAP_S
            unmap_files()

    def _pause_s(self) -> float:
        return self.interval_s * self.pipeline.overload.stretch

    # ---- main ----

    async def serve(self) -> int:
        """Until a signal, or the end of the command."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.set_exception_handler(say_once())
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        # the end of a terminal is the end of what was started in it; a service has none
        in_terminal = self._load_again is None or sys.stdin.isatty()
        loop.add_signal_handler(signal.SIGHUP, ended.set if in_terminal else self._reload)
        self._wake_main = lambda: loop.call_soon_threadsafe(ended.set)
        web = WebServer(self, self.store)
        await web.start()
        self.live_view.endpoints = web.endpoints
        for name, url in web.endpoints:
            log.info("%s: %s", name, url)
        watched = len(self.watcher.watched())
        log.info("ready after %.2f s: watching %d process%s", process_age_s(), watched, "" if watched == 1 else "es")
        if self.loaded.config.confine and (reason := confine()):
            log.warning("not confined by a system call filter: %s", reason)
        release_start()
        live = self._show_live(ended)
        try:
            await self._watch_over(ended)
        finally:
            ended.set()
            if live is not None:
                await live
            await web.stop()
        return 0 if self.failure is None else 1

    def _show_live(self, ended: asyncio.Event) -> asyncio.Task[None] | None:
        if self.loaded.config.trace_printer != "disabled" or not sys.stdout.isatty():
            return None
        from onlooker.cli.live import show  # rich is for those who look

        return asyncio.create_task(show(self.live_view, ended, out=sys.stdout))

    async def _watch_over(self, ended: asyncio.Event) -> None:
        config = self.loaded.config.otel_metrics_export
        interval_s = config.interval or config.otel_interval_ms / 1000
        next_export = time.monotonic() + interval_s
        while not ended.is_set() and not self._stop.is_set():
            if self.child is not None and self.child.poll() is not None:
                await asyncio.sleep(0.7)  # its last records are still under way
                return
            # nothing to do between two exports: a host without traffic is not woken for it
            due_s = max(next_export - time.monotonic(), 0.0) if self.metrics is not None else None
            if self.child is not None:
                due_s = 0.25 if due_s is None else min(due_s, 0.25)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), due_s)
            if self.metrics is not None and time.monotonic() >= next_export:
                next_export += interval_s
                await asyncio.to_thread(self.export_metrics)

    def export_metrics(self) -> None:
        """Hand a snapshot of all metrics to the exporter."""
        if self.metrics is not None:
            self.metrics.export(self.pipeline.aggregator.snapshot())

    # ---- another configuration ----

    def _reload(self) -> None:
        """Read the configuration again, for the capture thread to take; a wrong one changes nothing."""
        assert self._load_again is not None
        try:
            self._loaded_anew = self._with_command(self._load_again())
        except AgentError as err:
            log.error("the configuration was not reloaded, and stays as it was: %s", err)

    def _take_configuration(self) -> None:
        """Between two rounds: what can change while requests are under way."""
        loaded, self._loaded_anew = self._loaded_anew, None
        assert loaded is not None
        old = self.loaded.config
        self.loaded, later = taken_over(self.loaded, loaded)
        config = self.loaded.config
        self.watcher.select(self.loaded.selection)
        if config.routes != old.routes:
            self.pipeline.use_routes(config)
        if config.otel_traces_export.sampler != old.otel_traces_export.sampler:
            self.pipeline.use_sampler(config)
        watched = len(self.watcher.watched())
        log.info("configuration reloaded: watching %d process%s", watched, "" if watched == 1 else "es")
        if later:
            log.warning("these changes need a restart: %s", ", ".join(later))

    # ---- stop ----

    def stop(self) -> None:
        """Drain, export what is there, detach.  Runs the sentence from its start."""
        self._ask_child_to_end()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
        if self.failure is None and self._thread is not None:
            with contextlib.suppress(Exception):
                self.round()
                self._send_waiting()
        timeout_s = self.loaded.config.shutdown_timeout
        if self._thread is not None:
            self.watcher.stop()
            with contextlib.suppress(AgentError):
                self.export_metrics()
            deadline = time.monotonic() + timeout_s
            for exporter in (self.spans, self.metrics):
                if exporter is not None:
                    exporter.stop(max(deadline - time.monotonic(), 0.1))
            if self.store is not None:
                self.store.close()
        self.plaintext.stop()
        self.capture.close()
        self._end_child()

    def _ask_child_to_end(self) -> None:
        """At once, so that its end and ours take their time together."""
        self._open_gate()
        if self.child is not None and self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGTERM)

    def _end_child(self) -> None:
        if self.child is None:
            return
        try:
            self.child.wait(5.0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait(5.0)


def run(loaded: Loaded, *, command: list[str], load_again: Callable[[], Loaded] | None = None) -> int:
    """Run the agent until it is told to stop; gives the exit code.

    Args:
        loaded: What to do.
        command: A command to start and to watch; may be empty.
        load_again: Reads the configuration once more, on SIGHUP.

    Raises:
        AgentError: it cannot start.
    """
    for note in loaded.notes:
        log.warning("%s", note)
    agent = Agent(loaded, command=command, load_again=load_again)
    try:
        agent.start()
        return asyncio.run(agent.serve())
    finally:
        agent.stop()
