"""Who a process is: service name, namespace, version and the resource attributes by OpenTelemetry's conventions."""

from __future__ import annotations

import os
import platform
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from onlooker import semconv
from onlooker.batches import AttributeValue
from onlooker.discover._programs import Program, directory_name, program_of
from onlooker.discover.language import Language
from onlooker.discover.proc import Process

MAX_NAME: Final = 255
MAX_ATTRIBUTES: Final = 128
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm32", "i686": "x86", "s390x": "s390x"}


@dataclass(frozen=True, slots=True)
class Host:
    """What all services of this host share.

    Attributes:
        name, id, arch: `host.name`, `host.id`, `host.arch`.
        sdk_version: `telemetry.sdk.version`: the agent's own.
        extra: Resource attributes of the agent's own environment and configuration; the weakest of all.
        owner_of: Turns a user id into a name; "" if it has none.
    """

    name: str
    id: str = ""
    arch: str = "amd64"
    sdk_version: str = ""
    extra: Mapping[str, AttributeValue] = field(default_factory=dict)
    owner_of: Callable[[int], str] = lambda uid: ""

    @classmethod
    def read(
        cls,
        *,
        sdk_version: str,
        root: str = "",
        name: str = "",
        host_id: str = "",
        extra: Mapping[str, AttributeValue] | None = None,
    ) -> Host:
        """The facts of the running host; ``name`` and ``host_id`` override what is found below ``root``."""
        machine = os.uname()
        if not host_id:
            for path in (f"{root}/etc/machine-id", f"{root}/var/lib/dbus/machine-id"):
                try:
                    with open(path, encoding="ascii", errors="replace") as file:
                        host_id = clean(file.read(64)).strip()
                except OSError:
                    continue
                if host_id:
                    break
        return cls(
            name=name or machine.nodename,
            id=host_id,
            arch=_ARCHITECTURES.get(platform.machine(), platform.machine()),
            sdk_version=sdk_version,
            extra=dict(extra or {}),
            owner_of=_owner,
        )


@dataclass(frozen=True, slots=True)
class Name:
    """How a service is called, and why.

    Attributes:
        source: ``configuration``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES`` or ``program``.
        attributes: All of the target's `OTEL_RESOURCE_ATTRIBUTES` that can be used.
        program: What its command line says, whatever the name came from.
    """

    name: str
    namespace: str
    version: str
    source: str
    attributes: Mapping[str, str]
    program: Program


def name_service(process: Process, language: Language, *, name: str = "", namespace: str = "") -> Name:
    """Name the service that a process belongs to.

    Args:
        process: The top process of an instance.
        language: As `Languages.detect` gave it.
        name: The deprecated ``service_name`` of the configuration or of the selector; empty if not set.
        namespace: Likewise ``service_namespace``.

    Returns:
        A name that is never empty and never just that of an interpreter.
    """
    attributes = parse_resource_attributes(process.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    program = program_of(process, language)
    given = process.environ.get("OTEL_SERVICE_NAME", "")
    chosen, source = clean(name), "configuration"
    if not chosen and given and not given.startswith("$"):
        chosen, source = clean(given), "OTEL_SERVICE_NAME"
    if not chosen:
        chosen, source = clean(attributes.get(semconv.SERVICE_NAME, "")), "OTEL_RESOURCE_ATTRIBUTES"
    if not chosen:
        chosen, source = clean(program.name) or _last_resort(process, language), "program"
    return Name(
        name=chosen,
        namespace=clean(namespace) or clean(attributes.get(semconv.SERVICE_NAMESPACE, "")),
        version=clean(attributes.get(semconv.SERVICE_VERSION, "")) or clean(program.version),
        source=source,
        attributes=attributes,
        program=program,
    )


def parse_resource_attributes(text: str) -> dict[str, str]:
    """``key=value,key=value`` with percent-encoding, as the OpenTelemetry specification has it.

    Values that begin with ``$`` are templates that nobody filled in: they are left out.
    """
    found: dict[str, str] = {}
    for pair in text[: 64 * 1024].split(","):
        key, separator, value = pair.partition("=")
        key, value = clean(unquote(key.strip())), clean(unquote(value.strip()))
        if separator and key and value and not value.startswith("$") and len(found) < MAX_ATTRIBUTES:
            found[key] = value
    return found


def resource_of(
    process: Process, language: Language, name: Name, host: Host, *, instance_id: str
) -> tuple[tuple[str, AttributeValue], ...]:
    """All resource attributes of a service instance: the service's own first, the rest by name.

    Command line arguments are not among them: they carry secrets too often.
    """
    first: dict[str, AttributeValue] = {
        semconv.SERVICE_NAME: name.name,
        semconv.SERVICE_NAMESPACE: name.namespace,
        semconv.SERVICE_INSTANCE_ID: instance_id,
        semconv.SERVICE_VERSION: name.version,
        semconv.TELEMETRY_SDK_LANGUAGE: language.name,
        semconv.TELEMETRY_SDK_NAME: "onlooker",
        semconv.TELEMETRY_SDK_VERSION: host.sdk_version,
        semconv.TELEMETRY_DISTRO_NAME: "onlooker",
    }
    rest: dict[str, AttributeValue] = {
        semconv.HOST_NAME: host.name,
        semconv.HOST_ID: host.id,
        semconv.HOST_ARCH: host.arch,
        semconv.OS_TYPE: "linux",
        semconv.PROCESS_PID: process.pid,
        semconv.PROCESS_EXECUTABLE_NAME: clean(process.exe_name),
        semconv.PROCESS_EXECUTABLE_PATH: clean(process.exe, 4096),
        semconv.PROCESS_COMMAND: command_of(process),
        semconv.PROCESS_OWNER: owner(process, host),
        semconv.PROCESS_RUNTIME_NAME: language.runtime,
        semconv.PROCESS_RUNTIME_VERSION: language.version,
        semconv.CONTAINER_ID: process.container_id,
    }
    merged = {**host.extra, **rest, **{k: v for k, v in name.attributes.items() if k not in first}}
    return tuple(_pair(key, value) for key, value in first.items() if value != "") + tuple(
        _pair(key, merged[key]) for key in sorted(merged) if merged[key] != "" and key not in first
    )


@lru_cache(maxsize=1024, typed=True)
def _pair(key: str, value: AttributeValue) -> tuple[str, AttributeValue]:
    """The same object for the same pair: most of them are those of every other process."""
    return key, value


def owner(process: Process, host: Host) -> str:
    """The user's name; the bare number in a container, where the host's names mean nothing."""
    if process.uid < 0:
        return ""
    return ("" if process.container_id else host.owner_of(process.uid)) or str(process.uid)


def command_of(process: Process) -> str:
    """The command without its arguments; of a title that the process gave itself, the first word."""
    command = process.args[0] if process.args else process.stat.comm
    return clean(command.split(" ")[0], 1024)


def clean(text: str, limit: int = MAX_NAME) -> str:
    """Text fit for an attribute: no control characters, no direction marks, valid UTF-8, bounded."""
    return _CONTROL.sub(" ", text[: limit * 2]).strip()[:limit]


def _last_resort(process: Process, language: Language) -> str:
    inline = f"{process.exe_name or process.stat.comm}-inline" if language.is_interpreter else process.stat.comm
    return clean(directory_name(process.cwd)) or clean(inline) or f"pid-{process.pid}"


@lru_cache(maxsize=1024)
def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""
