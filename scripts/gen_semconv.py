"""Write ``src/onlooker/semconv.py`` from one pinned version of ``opentelemetry-semantic-conventions``.

The package is needed at development time only: at run time it would cost the import of the whole OpenTelemetry API
for a table of strings.  Its sources are read as text, not imported.  Deprecated names are left out; those of
generative AI count as deprecated since they moved to a repository of their own, and stay.

    pip install --no-deps opentelemetry-semantic-conventions==0.66b2
    python scripts/gen_semconv.py
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import re
import sys
from pathlib import Path

PACKAGE = "opentelemetry-semantic-conventions"
VERSION = "0.66b2"
TARGET = Path(__file__).resolve().parent.parent / "src" / "onlooker" / "semconv.py"

GROUPS = [
    "aws",
    "client",
    "cloud",
    "code",
    "container",
    "cpu",
    "db",
    "deployment",
    "dns",
    "elasticsearch",
    "error",
    "exception",
    "gen_ai",
    "graphql",
    "host",
    "http",
    "jsonrpc",
    "k8s",
    "mcp",
    "messaging",
    "network",
    "onc_rpc",
    "openai",
    "os",
    "otel",
    "peer",
    "process",
    "rpc",
    "server",
    "service",
    "source",
    "destination",
    "telemetry",
    "thread",
    "tls",
    "url",
    "user_agent",
]
METRIC_GROUPS = ["container", "cpu", "db", "dns", "gen_ai", "http", "k8s", "messaging", "process", "rpc", "system"]

# Names that other tools for the same job use and that the conventions lack.
OWN_ATTRIBUTES = (
    # spans and resources
    "span.metrics.skip", "dns.answers", "grafana_host_id", "rpc.system",
    "cuda.memcpy.kind", "onc_rpc.auth.flavor",
    "gen_ai.metadata", "gen_ai.response.error", "gen_ai.rerank.top_n", "gen_ai.retrieval.top_k",
    "gen_ai.request.embedding.input_count", "gen_ai.request.stream", "gen_ai.system_instructions",
    "aws.extended_request_id",
    # the group of Kubernetes: who owns the pod, whatever its kind
    "k8s.owner.name", "k8s.kind", "k8s.pod.start_time",
    # network flows and TCP statistics
    "direction", "iface", "iface.direction", "transport", "reason", "connection_type",
    "src.address", "dst.address", "src.port", "dst.port", "src.name", "dst.name", "src.zone", "dst.zone",
    "src.cidr", "dst.cidr", "src.country", "dst.country", "src.asn", "dst.asn",
    "k8s.src.owner.name", "k8s.dst.owner.name", "k8s.src.owner.type", "k8s.dst.owner.type",
    "k8s.src.namespace", "k8s.dst.namespace", "k8s.src.name", "k8s.dst.name", "k8s.src.type", "k8s.dst.type",
    "k8s.src.node.ip", "k8s.dst.node.ip", "k8s.src.node.name", "k8s.dst.node.name",
    "network.tcp.handshake.role",
    # run time of languages
    "jvm.memory.type", "jvm.memory.pool.name", "nodejs.eventloop.state",
    "service.peer.name", "service.peer.namespace", "disk.io.direction", "network.io.direction",
    # Prometheus
    "instance", "job",
    # span metrics and service graph
    "span.name", "span.kind", "status.code", "source",
    "client", "server", "client_service_namespace", "server_service_namespace",
)  # fmt: skip

OWN_METRICS = (
    "db.server.operation.duration",
    "traces.span.metrics.duration", "traces.span.metrics.calls",
    "traces_spanmetrics_latency", "traces_spanmetrics_calls_total",
    "traces_spanmetrics_size_total", "traces_spanmetrics_response_size_total",
    "traces.target.info", "traces.host.info", "target.info", "survey.info",
    "traces_service_graph_request_client", "traces_service_graph_request_server",
    "traces_service_graph_request_failed_total", "traces_service_graph_request_total",
    "gpu.cuda.kernel.launch.calls", "gpu.cuda.graph.launch.calls", "gpu.cuda.kernel.grid.size",
    "gpu.cuda.kernel.block.size", "gpu.cuda.memory.allocations", "gpu.cuda.memory.copies",
    "go.memory.limit", "go.memory.gc.goal", "go.memory.used", "go.memory.allocated", "go.memory.allocations",
    "go.memory.gc.cycles", "go.memory.gc.pause.duration", "go.schedule.duration", "go.cpu.time", "go.goroutine.count",
    "go.processor.limit", "go.config.gogc",
    "jvm.memory.used", "jvm.memory.committed", "jvm.memory.limit", "jvm.memory.used_after_last_gc",
    "nodejs.eventloop.time", "nodejs.eventloop.utilization",
    "nodejs.eventloop.delay.min", "nodejs.eventloop.delay.max", "nodejs.eventloop.delay.mean",
    "nodejs.eventloop.delay.stddev", "nodejs.eventloop.delay.p50", "nodejs.eventloop.delay.p90",
    "nodejs.eventloop.delay.p99",
    "process.cpu.time", "process.cpu.utilization", "process.memory.usage", "process.memory.virtual",
    "process.disk.io", "process.network.io",
)  # fmt: skip


def constant_name(name: str) -> str:
    """``http.request.method`` gives ``HTTP_REQUEST_METHOD``."""
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()


def names_in(source: str) -> list[str]:
    """The string constants of one generated module that its docstrings do not call deprecated."""
    body = ast.parse(source).body
    names = []
    for index, node in enumerate(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant)):
            continue
        after = body[index + 1] if index + 1 < len(body) else None
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = str(after.value.value)
        text = text.strip()
        gone = text.startswith("Deprecated:") and not text.startswith("Deprecated: Moved to")
        if isinstance(node.value.value, str) and not gone:
            names.append(node.value.value)
    return names


def schema_url(source: str) -> str:
    """The newest schema that the package knows."""
    urls = re.findall(r'"(https://opentelemetry\.io/schemas/([\d.]+))"', source)
    return max(urls, key=lambda found: tuple(int(part) for part in found[1].split(".")))[0]


def generate() -> str:
    """The text of the module."""
    distribution = importlib.metadata.distribution(PACKAGE)
    if distribution.version != VERSION:
        sys.exit(f"{PACKAGE} {distribution.version} is installed, {VERSION} is pinned")
    root = Path(str(distribution.locate_file("opentelemetry/semconv")))
    attributes: set[str] = set(OWN_ATTRIBUTES)
    metrics: set[str] = set(OWN_METRICS)
    for base in (root / "_incubating", root):
        for kind, groups, into in (("attributes", GROUPS, attributes), ("metrics", METRIC_GROUPS, metrics)):
            for group in groups:
                path = base / kind / f"{group}_{kind}.py"
                if path.exists():
                    into.update(names_in(path.read_text()))
    lines = [
        f"# generated by scripts/gen_semconv.py from {PACKAGE} {VERSION}, do not edit",
        '"""Names of the OpenTelemetry semantic conventions: attributes, and metrics (``METRIC_``)."""',
        "",
        "from typing import Final",
        "",
        f'SCHEMA_URL: Final = "{schema_url((root / "schemas.py").read_text())}"',
        "",
    ]
    for prefix, names in (("", attributes), ("METRIC_", metrics)):
        seen: dict[str, str] = {}
        for name in sorted(names):
            constant = prefix + constant_name(name)
            if seen.setdefault(constant, name) != name:
                sys.exit(f"{name} and {seen[constant]} would both be {constant}")
            lines.append(f'{constant}: Final = "{name}"')
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed file differs")
    arguments = parser.parse_args()
    text = generate()
    if arguments.check:
        if TARGET.read_text() != text:
            sys.exit(f"{TARGET} is not what the script writes: run scripts/gen_semconv.py")
        return
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
