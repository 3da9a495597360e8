"""What follows from the values together: derived ones are filled in, combinations that cannot work are refused.

After this, no reader needs to know two keys to understand one: an exporter's endpoint and protocol are final, its
features are the effective ones.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import PurePath
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

from msgspec.structs import replace

from onlooker.config.model import Config
from onlooker.config.origins import Note, Origin
from onlooker.config.sections.exports import ALWAYS_EXTRA, OtelMetricsExport, OtelTracesExport
from onlooker.config.sections.words import FEATURES, SPAN_METRICS
from onlooker.errors import ConfigError

DEFAULT_PROMETHEUS_PORT = 9464  # as OpenTelemetry's own Prometheus exporters
_COMMON_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_Otlp = TypeVar("_Otlp", OtelMetricsExport, OtelTracesExport)


def settle(
    config: Config, origins: dict[str, Origin], notes: list[Note], *, environ: Mapping[str, str], euid: int
) -> Config:
    """Fill in what follows; ``origins`` and ``notes`` are added to.

    Raises:
        ConfigError: Values contradict each other.
    """
    config = replace(
        config,
        otel_metrics_export=_settle_otlp(config, config.otel_metrics_export, "metrics", origins),
        otel_traces_export=_settle_otlp(config, config.otel_traces_export, "traces", origins),
    )
    config = _settle_metrics(config, origins)
    config = _settle_features(config, origins)
    config = _settle_traces(config, origins, notes)
    config = _settle_store(config, origins, environ, euid)
    _check_listeners(config, origins)
    _check_internal_metrics(config, origins)
    return config


def _place(origins: Mapping[str, Origin], *paths: str) -> str:
    return next((str(origins[path]) for path in paths if path in origins), "")


def _settle_otlp(config: Config, export: _Otlp, signal: str, origins: dict[str, Origin]) -> _Otlp:
    section = f"otel_{signal}_export"
    at = f"{section}.endpoint"
    grafana = config.grafana.otlp
    if not export.endpoint and grafana.cloud_zone and signal in grafana.cloud_submit:
        credentials = base64.b64encode(f"{grafana.cloud_instance_id}:{grafana.cloud_api_key}".encode()).decode()
        export = replace(
            export,
            endpoint=f"https://otlp-gateway-{grafana.cloud_zone}.grafana.net/otlp/v1/{signal}",
            protocol=export.protocol or "http/protobuf",
            headers={"Authorization": f"Basic {credentials}", **export.headers},
        )
        origins[at] = Origin("derived", "grafana.otlp")
    if bool(export.cert_file) != bool(export.key_file):
        missing, given = ("key_file", "cert_file") if export.cert_file else ("cert_file", "key_file")
        raise ConfigError(
            f"{section}.{given} is set without {section}.{missing}", place=_place(origins, f"{section}.{given}")
        )
    if not export.endpoint:
        return export
    url = _endpoint(export.endpoint, at, origins)
    protocol = export.protocol
    if not protocol:
        protocol = "grpc" if str(url.port or "").endswith("4317") else "http/protobuf"
        origins[f"{section}.protocol"] = Origin("derived", at)
    if protocol.startswith("http/") and url.scheme != "unix":
        path = url.path
        if origins.get(at, Origin("", "")).place.startswith(_COMMON_ENDPOINT):
            path = f"{url.path.rstrip('/')}/v1/{signal}"
        url = url._replace(path=path or f"/v1/{signal}")
    return replace(export, endpoint=urlunsplit(url), protocol=protocol)


def _endpoint(text: str, path: str, origins: Mapping[str, Origin]) -> SplitResult:
    """The parts of an endpoint; without a scheme it is taken as ``http``, as gRPC endpoints are often written."""
    place = _place(origins, path)
    written = text if "://" in text or text.startswith("unix:") else f"http://{text}"
    try:
        url = urlsplit(written)
        port = url.port
    except ValueError as err:
        raise ConfigError(f"{path}: {text!r} is not a URL: {err}", place=place) from err
    if url.scheme not in ("http", "https", "unix"):
        raise ConfigError(f"{path}: {text!r} must begin with http://, https:// or unix:", place=place)
    if url.scheme != "unix" and (not url.hostname or any(c.isspace() for c in text)):
        raise ConfigError(f"{path}: {text!r} names no host, such as in http://localhost:4318", place=place)
    if port == 0:
        raise ConfigError(f"{path}: port 0 cannot be reached", place=place)
    return url


def _settle_metrics(config: Config, origins: dict[str, Origin]) -> Config:
    metrics, prometheus = config.otel_metrics_export, config.prometheus_export
    interval = metrics.interval
    if not interval:
        interval = metrics.otel_interval_ms / 1000
        origins["otel_metrics_export.interval"] = Origin("derived", "OTEL_METRIC_EXPORT_INTERVAL")
    port = prometheus.port
    if not metrics.endpoint and not config.web.port and "prometheus_export.port" not in origins:
        port = DEFAULT_PROMETHEUS_PORT  # else the page's port has /metrics too
        origins["prometheus_export.port"] = Origin("derived", "neither a metrics exporter nor the page being set")
    if not prometheus.path.startswith("/"):
        raise ConfigError(
            f"prometheus_export.path: {prometheus.path!r} must begin with a slash",
            place=_place(origins, "prometheus_export.path"),
        )
    network = config.network
    if not network.deduper_fc_ttl:
        network = replace(network, deduper_fc_ttl=2 * network.cache_active_timeout)
    return replace(
        config,
        network=network,
        otel_metrics_export=replace(
            metrics,
            interval=interval,
            extra_span_resource_attributes=_extended(metrics.extra_span_resource_attributes),
        ),
        prometheus_export=replace(
            prometheus,
            port=port,
            extra_span_resource_attributes=_extended(prometheus.extra_span_resource_attributes),
        ),
    )


def _extended(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*names, *ALWAYS_EXTRA)))


def _settle_features(config: Config, origins: Mapping[str, Origin]) -> Config:
    """Each exporter's own list, else the common one; wildcards spelled out, one format of span metrics."""

    def effective(own: tuple[str, ...], path: str) -> tuple[str, ...]:
        chosen = own or config.metrics.features
        at = path if own else "metrics.features"
        if set(SPAN_METRICS) <= set(chosen):
            raise ConfigError(
                f"{at}: {' and '.join(SPAN_METRICS)} are two formats of the same metrics; choose one",
                place=_place(origins, at),
            )
        if {"all", "*"} & set(chosen):
            named = set(chosen) & {"application_span"}
            chosen = tuple(
                name for name in FEATURES if name != ("application_span_otel" if named else "application_span")
            )
        if config.network.enable:
            chosen = (*chosen, "network")
        return tuple(dict.fromkeys(chosen))

    metrics, prometheus = config.otel_metrics_export, config.prometheus_export
    return replace(
        config,
        otel_metrics_export=replace(metrics, features=effective(metrics.features, "otel_metrics_export.features")),
        prometheus_export=replace(prometheus, features=effective(prometheus.features, "prometheus_export.features")),
    )


def _settle_traces(config: Config, origins: Mapping[str, Origin], notes: list[Note]) -> Config:
    traces = config.otel_traces_export
    queue = traces.queue_size or 4 * traces.batch_max_size
    if queue < 2 * traces.batch_max_size:
        raise ConfigError(
            f"otel_traces_export.queue_size: {queue} holds less than two batches of "
            f"otel_traces_export.batch_max_size ({traces.batch_max_size})",
            place=_place(origins, "otel_traces_export.queue_size", "otel_traces_export.batch_max_size"),
        )
    sampler = traces.sampler
    if sampler.name.endswith("traceidratio"):
        try:
            good = 0.0 <= float(sampler.arg or "1") <= 1.0
        except ValueError:
            good = False
        if not good:
            origin = origins["otel_traces_export.sampler.arg"]
            message = f"otel_traces_export.sampler.arg: {sampler.arg[:80]!r} is not a ratio from 0 to 1"
            if origin.source != "environment":
                raise ConfigError(message, place=str(origin))
            notes.append(Note(str(origin), f"{message}; everything is kept"))
            sampler = replace(sampler, arg="1")
    return replace(config, otel_traces_export=replace(traces, queue_size=queue, sampler=sampler))


def _settle_store(config: Config, origins: dict[str, Origin], environ: Mapping[str, str], euid: int) -> Config:
    if config.store.path:
        return config
    if environ.get("STATE_DIRECTORY"):
        directory = PurePath(environ["STATE_DIRECTORY"].split(":")[0])
    elif euid == 0:
        directory = PurePath("/var/lib/onlooker")
    else:
        state = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME') or '/tmp'}/.local/state"
        directory = PurePath(state, "onlooker")
    origins["store.path"] = Origin("derived", "where state is kept on this system")
    return replace(config, store=replace(config.store, path=str(directory / "store.sqlite")))


def is_loopback(address: str) -> bool:
    """Whether only this host can reach a listener on ``address``."""
    if address == "localhost":
        return True
    try:
        return ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_listeners(config: Config, origins: Mapping[str, Origin]) -> None:
    for section, tls in (("web", config.web), ("prometheus_export", config.prometheus_export)):
        if bool(tls.tls_cert) != bool(tls.tls_key):
            missing, given = ("tls_key", "tls_cert") if tls.tls_cert else ("tls_cert", "tls_key")
            raise ConfigError(
                f"{section}.{given} is set without {section}.{missing}", place=_place(origins, f"{section}.{given}")
            )
    web = config.web
    if web.port and not is_loopback(web.address) and not web.token and not web.allow_public:
        raise ConfigError(
            f"web.address: {web.address!r} can be reached from other hosts; set web.token, or web.allow_public: true",
            place=_place(origins, "web.address"),
        )


def _check_internal_metrics(config: Config, origins: Mapping[str, Origin]) -> None:
    internal = config.internal_metrics
    if internal.exporter != "otel":
        return
    place = _place(origins, "internal_metrics.exporter")
    if internal.prometheus.port:
        raise ConfigError("internal_metrics.exporter: otel excludes internal_metrics.prometheus.port", place=place)
    if not config.otel_metrics_export.endpoint:
        raise ConfigError("internal_metrics.exporter: otel needs otel_metrics_export.endpoint", place=place)
