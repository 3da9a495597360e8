import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from onlooker.config import load_text
from onlooker.config.schema import json_schema
from onlooker.errors import ConfigError

VALIDATOR = Draft202012Validator(json_schema())

GOOD = [
    "service_name: my-api\ndiscovery: {services: [{open_ports: 8080}, {exe_path: '.*/my-api'}]}\n"
    "otel_traces_export: {endpoint: 'http://HOST:4317', protocol: grpc}\n"
    "otel_metrics_export: {endpoint: 'http://HOST:4317'}",
    "open_port: 80,443\nlog_level: debug\nprometheus_export: {port: 9090, buckets: {duration_histogram: [0, 0.1, 1]}}",
    "discovery:\n  instrument:\n    - {open_ports: [80, 8000-8099], exports: [], routes: {incoming: ['/a/{id}']}}\n",
    "attributes: {select: {'*': {include: ['*'], exclude: [url.path]}}, kubernetes: {enable: true}}",
    "filter: {application: {http.response.status_code: {greater_equals: 500}}}",
    "store: {max_bytes: 64MiB, max_age: 1h30m, enabled: no}\nlimits: {cpu_percent: 12.5, series: 500}",
    "network: {cidrs: [10.0.0.0/8, {cidr: 192.168.0.0/16, name: home}], enable: true}",
    "otel_traces_export: {headers: {a: b}, timeout: 2500, queue_size: 0, sampler: {name: traceidratio, arg: '0.1'}}",
    "ebpf: {payload_extraction: {http: {enrichment: {enabled: true, rules: "
    "[{type: headers, match: {patterns: [x-*]}}]}}}}",
    "web: {port: '${PORT:-9701}'}\ndiscovery:\n",
    "processes: {runmode: privileged}\notel_metrics_export: {OTELIntervalMS: 1000}\nroutes: {unmatched: wildcard}",
]
BAD = [
    "discovry: {}",
    "web: {port: many}",
    "web: {port: 70000}",
    "log_level: loud",
    "discovery: {instrument: {}}",
    "discovery: {instrument: [{open_prots: 1}]}",
    "otel_traces_export: {batch_timeout: 15}",
    "ebpf: {batch_length: 0}",
    "filter: {application: {x: {matches: y}}}",
    "metrics: {features: [aplication]}",
    "store: {enabled: maybe}",
    "web: 3",
]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json.loads(json.dumps(json_schema())) == json_schema()


@pytest.mark.parametrize("text", GOOD)
def test_what_loads_is_valid(text: str) -> None:
    load_text(text, name="f", environ={}, flags={})
    assert [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("text", BAD)
def test_what_does_not_load_is_not_valid(text: str) -> None:
    with pytest.raises(ConfigError):
        load_text(text, name="f", environ={}, flags={})
    assert not VALIDATOR.is_valid(yaml.safe_load(text))
