"""Who and where: ``attributes``, ``routes``, ``name_resolver`` and ``filter``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from onlooker.config.keys import Key, Section, both
from onlooker.config.kinds import (
    BOOL,
    COUNT,
    DURATION,
    TEXT,
    TEXTS,
    BadValue,
    Choice,
    Duration,
    Glob,
    Int,
    Kind,
    ListOf,
    MapOf,
    Number,
    OneCharacter,
    shorten,
    suggest,
)
from onlooker.config.sections.words import KUBERNETES_UNUSED
from onlooker.config.yaml_text import Mapping as MappingNode
from onlooker.config.yaml_text import Node, Scalar

_POSITIVE = Duration(positive=True)

Matcher = Mapping[str, str | float]
"""What an attribute must be like: one of `match`, `not_match`, or comparisons with numbers."""


class MatcherKind(Kind):
    """``match`` or ``not_match`` with a glob, or comparisons with numbers."""

    name = "matcher"
    from_environment = False
    globs = ("match", "not_match")
    numbers = ("greater_than", "greater_equals", "equals", "not_equals", "less_equals", "less_than")

    def from_node(self, node: Node) -> dict[str, str | float]:
        if not isinstance(node, MappingNode) or not node.entries:
            raise BadValue(f"takes a mapping with {', '.join((*self.globs, *self.numbers))}", node.line)
        found: dict[str, str | float] = {}
        for name, item in node.entries.items():
            if name not in self.globs + self.numbers or not isinstance(item, Scalar):
                hint = suggest(name, self.globs + self.numbers)
                raise BadValue(f"{shorten(name)} is not a comparison{hint}", node.lines[name])
            kind: Kind = Glob() if name in self.globs else Number(low=float("-inf"))
            found[name] = kind.from_node(item)
        if set(found) & set(self.globs) and len(found) > 1:
            raise BadValue("match and not_match stand alone", node.line)
        return found

    def schema(self) -> dict[str, object]:
        return {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {
                **{n: {"type": "string"} for n in self.globs},
                **{n: {"type": "number"} for n in self.numbers},
            },
        }


class SelectionKind(Kind):
    """``include`` and ``exclude`` lists of attribute globs."""

    name = "include and exclude lists"
    from_environment = False
    words = ("include", "exclude")

    def from_node(self, node: Node) -> dict[str, tuple[str, ...]]:
        if not isinstance(node, MappingNode):
            raise BadValue("takes a mapping with include and exclude", node.line)
        found = {}
        for name, item in node.entries.items():
            if name not in self.words:
                raise BadValue(
                    f"{shorten(name)} is not include or exclude{suggest(name, self.words)}", node.lines[name]
                )
            found[name] = ListOf(Glob()).from_node(item)
        return found

    def schema(self) -> dict[str, object]:
        names = ListOf(Glob()).schema()
        return {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(self.words, names)}


class HostId(Section, frozen=True):
    """`host.id`."""

    override: Annotated[str, Key(TEXT, "Its value, instead of the machine's own.", both("HOST_ID"))] = ""


class InstanceId(Section, frozen=True):
    """`service.instance.id`."""

    dns: Annotated[
        bool,
        Key(BOOL, "Ask DNS for the full host name.", both("HOSTNAME_DNS_RESOLUTION"),
            unused="the kernel's host name is taken; nothing is asked over the network"),
    ] = True  # fmt: skip
    override_hostname: Annotated[str, Key(TEXT, "Host name, instead of the machine's own.", both("HOSTNAME"))] = ""


class MetaSourceLabels(Section, frozen=True):
    """Pod labels that name a service."""

    service_name: Annotated[
        str,
        Key(TEXT, "Label of the name.", both("KUBE_META_SOURCE_LABEL_SERVICE_NAME"),
            deprecated="`attributes.kubernetes.resource_labels`"),
    ] = ""  # fmt: skip
    service_namespace: Annotated[
        str,
        Key(TEXT, "Label of the namespace.", both("KUBE_META_SOURCE_LABEL_SERVICE_NAMESPACE"),
            deprecated="`attributes.kubernetes.resource_labels`"),
    ] = ""  # fmt: skip


_RESOURCE_LABELS = {
    "service.name": ("app.kubernetes.io/instance", "app.kubernetes.io/name"),
    "service.namespace": ("app.kubernetes.io/part-of",),
    "service.version": ("app.kubernetes.io/version",),
}


class Kubernetes(Section, frozen=True):
    """Metadata from Kubernetes."""

    unused = KUBERNETES_UNUSED

    enable: Annotated[str, Key(Choice("autodetect", "true", "false"), "Switch.", both("KUBE_METADATA_ENABLE"))] = (
        "autodetect"
    )
    cluster_name: Annotated[str, Key(TEXT, "`k8s.cluster.name`.", both("KUBE_CLUSTER_NAME"))] = ""
    disable_informers: Annotated[
        tuple[str, ...],
        Key(ListOf(Choice("node", "service")), "Kinds of objects not to watch.", both("KUBE_DISABLE_INFORMERS")),
    ] = ()
    drop_external: Annotated[bool, Key(BOOL, "Drop flows that leave the cluster.", both("NETWORK_DROP_EXTERNAL"))] = (
        False
    )
    informers_resync_period: Annotated[
        float, Key(DURATION, "How often all is read again.", both("KUBE_INFORMERS_RESYNC_PERIOD"))
    ] = 1800.0
    informers_sync_timeout: Annotated[
        float, Key(_POSITIVE, "How long the first reading may take.", both("KUBE_INFORMERS_SYNC_TIMEOUT"))
    ] = 30.0
    kubeconfig_path: Annotated[str, Key(TEXT, "Path of a kubeconfig file.", ("KUBECONFIG",))] = ""
    meta_cache_address: Annotated[str, Key(TEXT, "host:port of a cache service.", both("KUBE_META_CACHE_ADDRESS"))] = ""
    meta_restrict_local_node: Annotated[
        bool, Key(BOOL, "Only this node's pods.", both("KUBE_META_RESTRICT_LOCAL_NODE"))
    ] = False
    meta_source_labels: MetaSourceLabels = MetaSourceLabels()
    reconnect_initial_interval: Annotated[
        float, Key(_POSITIVE, "Pause before connecting again.", both("KUBE_RECONNECT_INITIAL_INTERVAL"))
    ] = 5.0
    resource_labels: Annotated[
        Mapping[str, tuple[str, ...]], Key(MapOf(TEXTS), "Resource attribute to the pod labels that give it.")
    ] = msgspec.field(default_factory=lambda: dict(_RESOURCE_LABELS))
    service_name_template: Annotated[str, Key(TEXT, "Template of the service name.", both("SERVICE_NAME_TEMPLATE"))] = (
        ""
    )


class MetadataRetry(Section, frozen=True):
    """How metadata of the cloud is asked for."""

    unused = "no cloud metadata service is asked"

    max_interval: Annotated[float, Key(DURATION, "Longest pause.", both("METADATA_RETRY_MAX_INTERVAL"))] = 5.0
    start_interval: Annotated[float, Key(DURATION, "First pause.", both("METADATA_RETRY_START_INTERVAL"))] = 0.5
    timeout: Annotated[float, Key(DURATION, "When to give up.", both("METADATA_RETRY_TIMEOUT"))] = 30.0


class SensitiveQueryParams(Section, frozen=True):
    """Query parameters whose values are never recorded."""

    add: Annotated[tuple[str, ...], Key(TEXTS, "Names beyond the built-in list.")] = ()
    remove: Annotated[tuple[str, ...], Key(TEXTS, "Names of the built-in list that may be recorded.")] = ()


class Attributes(Section, frozen=True):
    """Attributes of metrics, spans and resources."""

    select: Annotated[
        Mapping[str, Mapping[str, tuple[str, ...]]],
        Key(MapOf(SelectionKind()), "Which attributes a metric, `traces` or `resource` carries, by name or wildcard."),
    ] = msgspec.field(default_factory=dict)
    extra_group_attributes: Annotated[
        Mapping[str, tuple[str, ...]],
        Key(MapOf(TEXTS), "Attributes added to a group; the only group is `k8s_app_meta`.", unused=KUBERNETES_UNUSED),
    ] = msgspec.field(default_factory=dict)
    host_id: HostId = HostId()
    instance_id: InstanceId = InstanceId()
    kubernetes: Kubernetes = Kubernetes()
    metadata_retry: MetadataRetry = MetadataRetry()
    metric_span_names_limit: Annotated[
        int,
        Key(Int(), "Distinct span names of a service in span metrics before all become `AGGREGATED`; 0 "
            "or less for no limit.",
            both("METRIC_SPAN_NAMES_LIMIT")),
    ] = 100  # fmt: skip
    rename_unresolved_hosts: Annotated[
        str, Key(TEXT, "Name of a peer without one, in the service graph.", both("RENAME_UNRESOLVED_HOSTS"))
    ] = "unresolved"
    rename_unresolved_hosts_incoming: Annotated[
        str, Key(TEXT, "The same for a client.", both("RENAME_UNRESOLVED_HOSTS_INCOMING"))
    ] = "incoming"
    rename_unresolved_hosts_outgoing: Annotated[
        str, Key(TEXT, "The same for a server.", both("RENAME_UNRESOLVED_HOSTS_OUTGOING"))
    ] = "outgoing"
    sensitive_query_params: SensitiveQueryParams = SensitiveQueryParams()


class Routes(Section, frozen=True):
    """How paths become routes."""

    patterns: Annotated[tuple[str, ...], Key(TEXTS, "Routes such as `/users/{id}`, `/users/:id` or `/static/*`.")] = ()
    ignored_patterns: Annotated[
        tuple[str, ...], Key(TEXTS, "Requests to leave out.", deprecated="a filter of the backend, or `ignore_mode`")
    ] = ()
    ignore_mode: Annotated[
        str,
        Key(
            Choice("all", "metrics", "traces", empty=True), "Where ignored requests are left out; empty for everywhere."
        ),
    ] = ""
    unmatched: Annotated[
        str,
        Key(
            Choice("low-cardinality", "heuristic", "wildcard", "path", "unset"),
            "What a path without a matching pattern becomes.",
        ),
    ] = "low-cardinality"
    wildcard_char: Annotated[str, Key(OneCharacter(), "What stands for a part that varies.")] = "*"
    max_path_segment_cardinality: Annotated[
        int, Key(COUNT, "Distinct children of a path before they become one; 0 for no limit.")
    ] = 10


class NameResolver(Section, frozen=True):
    """Names of peers."""

    unused = "peers are named by the connections seen on this host; no resolver is asked yet"

    sources: Annotated[
        tuple[str, ...],
        Key(
            ListOf(Choice("k8s", "kubernetes", "dns", "rdns")), "Where names come from.", both("NAME_RESOLVER_SOURCES")
        ),
    ] = ("k8s",)
    cache_expiry: Annotated[float, Key(DURATION, "How long a name is kept.", both("NAME_RESOLVER_CACHE_TTL"))] = 300.0
    cache_len: Annotated[int, Key(COUNT, "How many names are kept.", both("NAME_RESOLVER_CACHE_LEN"))] = 1024


_MATCHERS = MapOf(MatcherKind())


class Filter(Section, frozen=True):
    """Which requests are kept, by attribute."""

    unused = "requests are not filtered by attribute yet"

    application: Annotated[
        Mapping[str, Matcher], Key(_MATCHERS, "Requests: attribute to what it must be like; all must hold.")
    ] = msgspec.field(default_factory=dict)
    network: Annotated[Mapping[str, Matcher], Key(_MATCHERS, "Network flows.")] = msgspec.field(default_factory=dict)
    stats: Annotated[Mapping[str, Matcher], Key(_MATCHERS, "TCP statistics.")] = msgspec.field(default_factory=dict)
