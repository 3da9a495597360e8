import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onlooker.config import Loaded, load, load_text
from onlooker.config.keys import walk
from onlooker.config.model import Config
from onlooker.config.show import as_yaml, effective
from onlooker.errors import ConfigError


def read(text: str = "", environ: dict[str, str] | None = None, **flags: str) -> Loaded:
    named = {path.replace("__", "."): (f"--{path}", value) for path, value in flags.items()}
    return load_text(textwrap.dedent(text), name="f.yml", environ=environ or {}, flags=named)


def fault(text: str = "", environ: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, environ, **flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


def notes(loaded: Loaded) -> list[str]:
    return [str(note) for note in loaded.notes]


def test_the_documented_file_works_as_it_is() -> None:
    loaded = read(
        """\
        service_name: my-api
        discovery:
          services:
            - open_ports: 8080
            - exe_path: ".*/my-api"
        otel_traces_export:
          endpoint: http://HOST:4317
          protocol: grpc
        otel_metrics_export:
          endpoint: http://HOST:4317
        """
    )
    config = loaded.config
    assert config.service_name == "my-api"
    assert (config.otel_traces_export.endpoint, config.otel_traces_export.protocol) == ("http://HOST:4317", "grpc")
    assert (config.otel_metrics_export.endpoint, config.otel_metrics_export.protocol) == ("http://HOST:4317", "grpc")
    ports, path = loaded.selection.selectors
    assert ports.matches_ports([8080])
    assert not ports.matches_ports([80])
    assert path.matches_exe("/srv/my-api")
    assert all("deprecated" in note for note in notes(loaded))


def test_later_sources_win_and_are_remembered() -> None:
    text = "log_level: debug\nopen_port: 80\nshutdown_timeout: 3s\n"
    loaded = read(text, {"BEYLA_OPEN_PORT": "81", "ONLOOKER_SHUTDOWN_TIMEOUT": "4s"}, shutdown_timeout="5s")
    config = loaded.config
    assert (config.log_level, config.open_port, config.shutdown_timeout) == ("DEBUG", ((81, 81),), 5.0)
    origins = {path: str(loaded.origins[path]) for path in ("log_level", "open_port", "shutdown_timeout")}
    assert origins == {"log_level": "f.yml:1", "open_port": "BEYLA_OPEN_PORT", "shutdown_timeout": "--shutdown_timeout"}
    assert "ebpf.batch_length" not in loaded.origins


def test_names_of_a_variable_have_an_order_and_empty_ones_do_not_count() -> None:
    environ = {"BEYLA_LOG_LEVEL": "ERROR", "OTEL_EBPF_LOG_LEVEL": "WARN", "ONLOOKER_LOG_LEVEL": ""}
    assert read(environ=environ).config.log_level == "WARN"
    assert read(environ={**environ, "ONLOOKER_LOG_LEVEL": "DEBUG"}).config.log_level == "DEBUG"
    assert read(environ={"BEYLA_OTEL_METRICS_INTERVAL": "7s"}).config.otel_metrics_export.interval == 7.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("discovry: {}", "f.yml:1: discovry: no such key; did you mean discovery?"),
        ("web:\n  prot: 1", "f.yml:2: web.prot: no such key; did you mean port?"),
        ("web:\n  endpoint: x", "there is otel_metrics_export.endpoint"),
        ("ebpf: {enable_context_propagation: true}", "it is called ebpf.context_propagation"),
        ("file_format: '2'", "version 2"),
        (
            "discovery:\n  instrument:\n    - open_prots: 1",
            "f.yml:3: discovery.instrument[0].open_prots: no such key; did you mean open_ports",
        ),
        ("discovery: {instrument: {open_ports: 1}}", "takes a list"),
        ("discovery: {instrument: [x]}", "discovery.instrument[0]: takes a mapping"),
        (
            "discovery: {instrument: [{exe_path: '[a'}]}",
            "discovery.instrument[0].exe_path: '[a' is not a glob: '[' is not closed",
        ),
        ("discovery: {services: [{exe_path: '('}]}", "not a regular expression"),
        ("discovery: {services: [{exe_path: '(?=a)'}]}", "Go's syntax"),
        ("web: 3", "f.yml:1: web: takes a mapping of keys to values"),
        ("log_level: loud", "log_level: 'loud' is not one of DEBUG, INFO, WARN, ERROR"),
        ("log_level: [DEBUG]", "takes one value"),
        ("open_port: {a: 1}", "takes one value"),
        ("otel_traces_export: {protocol: http/protobuff}", "did you mean http/protobuf"),
        ("otel_traces_export: {batch_timeout: 15}", "say 15s"),
        ("ebpf: {batch_length: 0}", "ebpf.batch_length: 0 is out of range: at least 1"),
        ("routes: {wildcard_char: '**'}", "one character"),
        ("metrics: {features: [aplication]}", "did you mean application"),
        ("metrics: {features: [application_span, application_span_otel]}", "two formats"),
        ("otel_traces_export: {queue_size: 10, batch_max_size: 6}", "less than two batches"),
        ("otel_traces_export: {sampler: {name: traceidratio, arg: '2'}}", "not a ratio"),
        ("otel_traces_export: {endpoint: 'ftp://x'}", "must begin with http://"),
        ("otel_traces_export: {endpoint: 'http://'}", "names no host"),
        ("otel_traces_export: {endpoint: 'http://h:99999'}", "is not a URL"),
        ("otel_traces_export: {endpoint: 'http://h', cert_file: c.pem}", "without otel_traces_export.key_file"),
        ("web: {address: 0.0.0.0}", "web.address: '0.0.0.0' can be reached from other hosts"),
        ("web: {tls_cert: a}", "without web.tls_key"),
        ("prometheus_export: {path: metrics}", "must begin with a slash"),
        ("internal_metrics: {exporter: otel}", "needs otel_metrics_export.endpoint"),
        ("filter: {application: {http.route: {matches: x}}}", "did you mean match"),
        ("filter: {application: {http.route: {match: x, equals: 3}}}", "stand alone"),
        ("attributes: {select: {traces: {included: [x]}}}", "did you mean include"),
        ("network: {cidrs: [10.0.0.0/99]}", "not a network"),
        ("a: !!binary aGk=", "the tag !!binary has no meaning here"),
    ],
)
def test_faults_name_the_place_and_what_would_do(text: str, told: str) -> None:
    message = fault(text)
    assert told in message
    assert message.startswith("f.yml:")


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read("a: 1\nlog_level: loud\n", {"BEYLA_OPEN_PORT": "x"})
    assert str(caught.value).startswith("f.yml:1: a: no such key")
    assert [note.split(": ")[0] for note in caught.value.__notes__] == ["f.yml:2", "BEYLA_OPEN_PORT"]


def test_wrong_variables_of_ours_stop_the_start_and_shared_ones_are_left_out() -> None:
    assert fault(environ={"ONLOOKER_LOG_LEVEL": "loud"}).startswith("ONLOOKER_LOG_LEVEL: log_level:")
    loaded = read(environ={"OTEL_TRACES_SAMPLER": "xray", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"})
    assert loaded.config.otel_traces_export.sampler.name == "parentbased_always_on"
    assert {note.split(":")[0] for note in notes(loaded)} == {"OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_PROTOCOL"}
    loaded = read(environ={"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "much"})
    assert loaded.config.otel_traces_export.sampler.arg == "1"


def test_wrong_flags_name_the_flag() -> None:
    assert fault(open_port="abc").startswith("--open_port: 'abc' is not a number")


def test_a_key_that_changes_nothing_is_told_once_with_the_reason() -> None:
    loaded = read("network: {sampling: 3}\nebpf: {batch_length: 100}\ndiscovery: {instrument: [{k8s_namespace: a}]}")
    assert notes(loaded) == [
        "f.yml:1: network.sampling changes nothing: network flow metrics are not built yet",
        "f.yml:3: discovery.instrument[0].k8s_namespace changes nothing: Kubernetes metadata is not built yet",
    ]  # the default written out needs no word


def test_unknown_variables_are_told_but_not_those_of_kubernetes() -> None:
    environ = {
        "ONLOOKER_WEB_PROT": "1",
        "ONLOOKER_SERVICE_HOST": "10.0.0.1",
        "BEYLA_PORT_9090_TCP_ADDR": "10.0.0.1",
        "ONLOOKER_WEB_PORT": "tcp://10.0.0.1:80",
        "KUBECONFIG": "/x",
        "UNRELATED": "1",
    }
    loaded = read(environ=environ)
    assert loaded.config.web.port == 9700
    kubernetes, mistyped = sorted(notes(loaded))
    assert kubernetes == "ONLOOKER_WEB_PORT: left out: Kubernetes set it for a service of that name"
    assert mistyped.startswith("ONLOOKER_WEB_PROT: no key has this variable; did you mean ONLOOKER_WEB_PORT")


def test_a_key_without_a_value_keeps_its_default() -> None:
    loaded = read("discovery:\nlog_level:\nweb: {port: ~}\notel_traces_export:\n  endpoint: ${NOT_SET}\n")
    assert loaded.config.log_level == "INFO"
    assert loaded.config.otel_traces_export.endpoint == ""
    assert notes(loaded) == ["f.yml:5: ${NOT_SET} is not set and stands for nothing"]


@pytest.mark.parametrize(
    ("environ", "text", "endpoint", "protocol"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}, "", "http://h:4318/v1/traces", "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318/base/"}, "", "http://h:4318/base/v1/traces", "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317"}, "", "http://h:4317", "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://h/x"}, "", "https://h/x", "http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318"}, "", "http://h:4318/v1/traces", "http/protobuf"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "otel_traces_export: {endpoint: 'http://h:1/p'}",
            "http://h:1/p",
            "http/json",
        ),
        ({}, "otel_traces_export: {endpoint: 'localhost:14317'}", "http://localhost:14317", "grpc"),
        ({}, "otel_traces_export: {endpoint: 'http://[::1]:4318'}", "http://[::1]:4318/v1/traces", "http/protobuf"),
        (
            {},
            "grafana: {otlp: {cloud_zone: z, cloud_instance_id: 1, cloud_api_key: k}}",
            "https://otlp-gateway-z.grafana.net/otlp/v1/traces",
            "http/protobuf",
        ),
        ({}, "", "", ""),
    ],
)
def test_endpoints_and_protocols_are_final(environ: dict[str, str], text: str, endpoint: str, protocol: str) -> None:
    traces = read(text, environ).config.otel_traces_export
    assert (traces.endpoint, traces.protocol) == (endpoint, protocol)


def test_headers_are_merged_by_name() -> None:
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": "a=common,b=common", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=traces"}
    config = read("otel_traces_export: {headers: {a: file, c: file}}", environ).config
    assert config.otel_traces_export.headers == {"a": "common", "b": "traces", "c": "file"}
    assert config.otel_metrics_export.headers == {"a": "common", "b": "common"}


def test_otlp_settings_of_the_standard_variables() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1s",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": "/c",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/k",
        "OTEL_METRIC_EXPORT_INTERVAL": "15000",
        "OTEL_RESOURCE_ATTRIBUTES": "team=a,place=b%20c",
    }
    loaded = read(environ=environ)
    traces, metrics = loaded.config.otel_traces_export, loaded.config.otel_metrics_export
    assert (traces.timeout, metrics.timeout, traces.compression) == (2.5, 1.0, "gzip")
    assert (traces.ca_file, traces.cert_file, traces.key_file, metrics.cert_file) == ("/ca", "/c", "/k", "")
    assert metrics.interval == 15.0
    assert loaded.resource == {"team": "a", "place": "b c"}


def test_prometheus_is_on_unless_metrics_go_elsewhere() -> None:
    assert read().config.prometheus_export.port == 0  # the page's port answers
    assert read("web: {port: 0}").config.prometheus_export.port == 9464
    assert read("prometheus_export: {port: 0}").config.prometheus_export.port == 0
    assert read("{web: {port: 0}, otel_metrics_export: {endpoint: 'http://h:4318'}}").config.prometheus_export.port == 0


def test_features_are_the_effective_ones() -> None:
    config = read("metrics: {features: ['*']}\nprometheus_export: {features: [application]}").config
    assert config.prometheus_export.features == ("application",)
    assert "application_span_otel" in config.otel_metrics_export.features
    assert not {"application_span", "*"} & set(config.otel_metrics_export.features)
    assert read("network: {enable: true}").config.prometheus_export.features == ("application", "network")


@pytest.mark.parametrize(
    ("environ", "euid", "path"),
    [
        ({}, 0, "/var/lib/onlooker/store.sqlite"),
        ({"STATE_DIRECTORY": "/s:/t"}, 0, "/s/store.sqlite"),
        ({"HOME": "/h"}, 5, "/h/.local/state/onlooker/store.sqlite"),
        ({"XDG_STATE_HOME": "/x"}, 5, "/x/onlooker/store.sqlite"),
    ],
)
def test_where_state_is_kept(environ: dict[str, str], euid: int, path: str) -> None:
    assert load_text("", name="f", environ=environ, flags={}, euid=euid).config.store.path == path


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "good.yml"
    good.write_bytes(b"\xef\xbb\xbflog_level: WARN\n")
    assert load(good, environ={}).config.log_level == "WARN"
    assert load(None, environ={"BEYLA_CONFIG_PATH": str(good)}).config.log_level == "WARN"
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yml", environ={})
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, environ={})
    (tmp_path / "bad.yml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "bad.yml", environ={})


def test_what_is_shown_can_be_read_again() -> None:
    text = """\
        discovery: {instrument: [{open_ports: [80, 8000-8099], exports: [traces], sampler: {name: always_off}}]}
        otel_traces_export: {endpoint: 'https://h/v1/traces', batch_timeout: 250ms}
        attributes: {select: {traces: {include: ['*']}}}
        filter: {application: {http.route: {not_match: '/health*'}}}
        store: {max_bytes: 64MiB, max_age: 90m}
        network: {cidrs: [10.0.0.0/8, {cidr: 192.168.0.0/16, name: home}]}
        """
    first = read(text)
    for everything in (False, True):
        shown = as_yaml(first, everything=everything)
        again = load_text(shown, name="again.yml", environ={}, flags={})
        assert again.config == first.config
    assert yaml.safe_load(as_yaml(first))["store"]["max_bytes"] == "64MiB"
    assert set(effective(first, everything=True)) == {key.path for key in walk(Config)}


def test_no_secret_is_shown() -> None:
    text = """\
        web: {token: hush-1}
        prometheus_export: {token: hush-2}
        grafana: {otlp: {cloud_zone: z, cloud_api_key: hush-3}}
        otel_metrics_export: {endpoint: 'http://user:hush-4@h:4318', headers: {authorization: hush-5}}
        """
    loaded = read(text)
    assert "hush" not in as_yaml(loaded, everything=True)
    assert "hush" not in str(effective(loaded, everything=True))
    assert "authorization" in as_yaml(loaded)


_WORDS = st.sampled_from(
    [*(field for key in walk(Config) for field in key.path.split(".")), "x", "80", "5s", "true", "*", "(", "grpc"]
)
_TREES = st.recursive(
    _WORDS | st.none() | st.integers(), lambda t: st.lists(t, max_size=3) | st.dictionaries(_WORDS, t, max_size=4)
)


@settings(max_examples=200)
@given(st.dictionaries(_WORDS, _TREES, max_size=4))
def test_any_file_loads_or_is_a_config_error(tree: dict[str, object]) -> None:
    try:
        load_text(yaml.safe_dump(tree), name="f.yml", environ={}, flags={})
    except ConfigError as err:
        assert "\n" not in str(err)  # noqa: PT017  # loading is as good
        assert err.place  # noqa: PT017
