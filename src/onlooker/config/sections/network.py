"""Flows and TCP statistics: ``network`` and ``stats``."""

from __future__ import annotations

from typing import Annotated

from onlooker.config.keys import Key, Section, both
from onlooker.config.kinds import BOOL, COUNT, DURATION, TEXT, TEXTS, Choice, Cidr, CidrItem, ListOf
from onlooker.config.sections.words import NETWORK_UNUSED

_CIDRS = ListOf(CidrItem())
_AGENT_IP = "Address of this host in the metrics."
_AGENT_IFACE = "Where it is taken from: `external`, `local` or `name:IFACE`."
_AGENT_TYPE = Choice("any", "ipv4", "ipv6")


def _aliased(name: str) -> tuple[str, ...]:
    return both(name, f"NETWORK_{name}")


class Ipinfo(Section, frozen=True):
    """A database of ipinfo."""

    path: Annotated[str, Key(TEXT, "Path of the file.", _aliased("GEOIP_IPINFO_PATH"))] = ""


class Maxmind(Section, frozen=True):
    """Databases of MaxMind."""

    asn_path: Annotated[str, Key(TEXT, "Path of the ASN file.", _aliased("GEOIP_MAXMIND_ASN_PATH"))] = ""
    country_path: Annotated[str, Key(TEXT, "Path of the country file.", _aliased("GEOIP_MAXMIND_COUNTRY_PATH"))] = ""


class GeoIp(Section, frozen=True):
    """Countries and autonomous systems of addresses."""

    cache_expiry: Annotated[float, Key(DURATION, "How long an answer is kept.", _aliased("GEOIP_CACHE_TTL"))] = 3600.0
    cache_len: Annotated[int, Key(COUNT, "How many answers are kept.", _aliased("GEOIP_CACHE_LEN"))] = 512
    ipinfo: Ipinfo = Ipinfo()
    maxmind: Maxmind = Maxmind()


class ReverseDns(Section, frozen=True):
    """Names of addresses."""

    type: Annotated[
        str, Key(Choice("none", "local", "ebpf"), "Where they come from.", _aliased("REVERSE_DNS_TYPE"))
    ] = "none"
    cache_expiry: Annotated[float, Key(DURATION, "How long an answer is kept.", _aliased("REVERSE_DNS_CACHE_TTL"))] = (
        3600.0
    )
    cache_len: Annotated[int, Key(COUNT, "How many answers are kept.", _aliased("REVERSE_DNS_CACHE_LEN"))] = 256


class Network(Section, frozen=True):
    """Network flows."""

    unused = NETWORK_UNUSED

    enable: Annotated[
        bool, Key(BOOL, "Switch.", both("NETWORK_METRICS"), deprecated="the feature `network` of `metrics.features`")
    ] = False
    agent_ip: Annotated[str, Key(TEXT, _AGENT_IP, both("NETWORK_AGENT_IP"))] = ""
    agent_ip_iface: Annotated[str, Key(TEXT, _AGENT_IFACE, both("NETWORK_AGENT_IP_IFACE"))] = "external"
    agent_ip_type: Annotated[str, Key(_AGENT_TYPE, "Which family.", both("NETWORK_AGENT_IP_TYPE"))] = "any"
    cache_active_timeout: Annotated[
        float, Key(DURATION, "How long a flow is gathered.", both("NETWORK_CACHE_ACTIVE_TIMEOUT"))
    ] = 5.0
    cache_max_flows: Annotated[int, Key(COUNT, "Most flows at once.", both("NETWORK_CACHE_MAX_FLOWS"))] = 5000
    cidrs: Annotated[
        tuple[Cidr, ...], Key(_CIDRS, "Networks to group by; the narrowest wins.", both("NETWORK_CIDRS"))
    ] = ()
    deduper: Annotated[
        str, Key(Choice("first_come", "none"), "What happens to flows seen on two interfaces.", both("NETWORK_DEDUPER"))
    ] = "first_come"
    deduper_fc_ttl: Annotated[
        float,
        Key(DURATION, "How long it remembers; 0 for twice `cache_active_timeout`.", both("NETWORK_DEDUPER_FC_TTL")),
    ] = 0.0
    direction: Annotated[
        str, Key(Choice("both", "ingress", "egress"), "Which direction.", both("NETWORK_DIRECTION"))
    ] = "both"
    exclude_interfaces: Annotated[
        tuple[str, ...], Key(TEXTS, "Interfaces to leave out.", both("NETWORK_EXCLUDE_INTERFACES"))
    ] = ("lo",)
    exclude_protocols: Annotated[
        tuple[str, ...], Key(TEXTS, "Protocols to leave out.", both("NETWORK_EXCLUDE_PROTOCOLS"))
    ] = ()
    geo_ip: GeoIp = GeoIp()
    guess_ports: Annotated[
        str, Key(Choice("disable", "ordinal"), "How the server's side is guessed.", both("NETWORK_GUESS_PORTS"))
    ] = "disable"
    interfaces: Annotated[
        tuple[str, ...],
        Key(TEXTS, "Interfaces; empty for all, `/re/` for a regular expression.", both("NETWORK_INTERFACES")),
    ] = ()
    listen_interfaces: Annotated[
        str, Key(Choice("watch", "poll"), "How new interfaces are noticed.", both("NETWORK_LISTEN_INTERFACES"))
    ] = "watch"
    listen_poll_period: Annotated[float, Key(DURATION, "How often.", both("NETWORK_LISTEN_POLL_PERIOD"))] = 10.0
    print_flows: Annotated[bool, Key(BOOL, "Print them.", both("NETWORK_PRINT_FLOWS"))] = False
    protocols: Annotated[tuple[str, ...], Key(TEXTS, "Protocols; empty for all.", both("NETWORK_PROTOCOLS"))] = ()
    reverse_dns: ReverseDns = ReverseDns()
    sampling: Annotated[int, Key(COUNT, "One packet of so many; 0 for all.", both("NETWORK_SAMPLING"))] = 0
    source: Annotated[str, Key(Choice("socket_filter", "tc"), "Where packets are seen.", both("NETWORK_SOURCE"))] = (
        "socket_filter"
    )


class Stats(Section, frozen=True):
    """TCP statistics."""

    unused = "TCP statistics are not built yet"

    agent_ip: Annotated[str, Key(TEXT, _AGENT_IP, both("STATS_AGENT_IP"))] = ""
    agent_ip_iface: Annotated[str, Key(TEXT, _AGENT_IFACE, both("STATS_AGENT_IP_IFACE"))] = "external"
    agent_ip_type: Annotated[str, Key(_AGENT_TYPE, "Which family.", both("STATS_AGENT_IP_TYPE"))] = "any"
    cidrs: Annotated[tuple[Cidr, ...], Key(_CIDRS, "Networks to group by.", both("STATS_CIDRS"))] = ()
    geo_ip: GeoIp = GeoIp()
    print_stats: Annotated[bool, Key(BOOL, "Print them.", both("STATS_PRINT_STATS"))] = False
    reverse_dns: ReverseDns = ReverseDns()
