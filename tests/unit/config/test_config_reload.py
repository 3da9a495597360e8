"""What a running agent takes of a configuration that is read again, and what it says it does not."""

from __future__ import annotations

from onlooker.config import Loaded, load_text
from onlooker.config.reload import taken_over


def read(text: str) -> Loaded:
    return load_text(text, name="f.yml", environ={}, flags={})


OLD = read(
    """
open_port: 8080
discovery: {poll_interval: 5s, min_process_age: 2s}
routes: {unmatched: path}
otel_traces_export: {endpoint: http://old:4318, sampler: {name: always_on}}
log_level: debug
"""
)


def test_selectors_routes_and_the_sampler_change() -> None:
    new = read(
        """
open_port: 9090
discovery: {poll_interval: 5s, min_process_age: 2s, exclude_instrument: [{open_ports: 9091}]}
routes: {unmatched: wildcard}
otel_traces_export: {endpoint: http://old:4318, sampler: {name: traceidratio, arg: "0.5"}}
log_level: debug
"""
    )
    now, later = taken_over(OLD, new)
    assert later == []
    assert now.config == new.config
    assert now.selection is new.selection
    assert dict(now.origins) == dict(new.origins)


def test_what_needs_a_restart_stays_as_it_is_and_is_named() -> None:
    new = read(
        """
open_port: 9090
discovery: {poll_interval: 60s, min_process_age: 2s}
otel_traces_export: {endpoint: http://new:4318, sampler: {name: always_off}}
"""
    )
    now, later = taken_over(OLD, new)
    assert later == ["discovery", "log_level", "otel_traces_export"]
    assert now.config.open_port == new.config.open_port
    assert now.config.routes == new.config.routes
    assert now.config.otel_traces_export.sampler.name == "always_off"
    assert now.config.otel_traces_export.endpoint == OLD.config.otel_traces_export.endpoint
    assert now.config.discovery == OLD.config.discovery
    assert now.config.log_level == OLD.config.log_level
    assert now.origins["log_level"] == OLD.origins["log_level"]
    again, still = taken_over(now, new)
    assert still == later, "the next time it is told again, and not taken for done"
    assert again.config == now.config
