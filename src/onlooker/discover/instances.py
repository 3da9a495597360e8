"""Service instances: which watched processes are one, and their entries in the `Identities`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from onlooker import semconv
from onlooker.batches import Identities, Service
from onlooker.batches import Process as ProcessEntry
from onlooker.discover._matching import Overrides
from onlooker.discover.language import Language
from onlooker.discover.naming import Host, Name, clean, command_of, name_service, resource_of
from onlooker.discover.proc import Process

ALL_SIGNALS = frozenset({"metrics", "traces"})


@dataclass(frozen=True, slots=True)
class Member:
    """A watched process and the instance that it belongs to.

    Attributes:
        process_id, service_id: Keys into the `Identities`.
        top: Pid of the instance's first process.
        name_source: See `Name.source`.
    """

    process_id: int
    service_id: int
    top: int
    name: str
    name_source: str
    language: Language
    overrides: Overrides
    args: int  # hash of the command line


class Instances:
    """Adds processes and services to the `Identities`, and ends them.

    Processes that a program forks, or starts again from the same executable as its helpers, are one instance with
    it: pre-fork workers, multiprocessing children, members of a Node cluster.
    """

    def __init__(self, identities: Identities, host: Host, *, service_name: str, service_namespace: str) -> None:
        self._identities = identities
        self._host = host
        self._service_name = service_name
        self._service_namespace = service_namespace
        self._split: dict[tuple[int, str], int] = {}  # (service of the top process, pool) to the pool's service

    def found(self, process: Process, language: Language, overrides: Overrides) -> Member:
        """A new instance with ``process`` at its top."""
        name = self._name(process, language, overrides)
        service = self._add_service(process, language, name, overrides, top=process.pid)
        return self._member(process, service, process.pid, name, language, overrides)

    def join(self, process: Process, parent: Member, *, forked: bool, language: Language) -> Member | None:
        """Make ``process`` a member of its parent's instance.

        Args:
            process: A child with the executable of its parent.
            parent: The parent's membership.
            forked: Whether it still runs what its parent ran, without an exec in between.
            language: Of the process.

        Returns:
            None if it is a program of its own: another script under the same interpreter.
        """
        name = self._name(process, language, parent.overrides)
        if not (forked or name.program.helper or hash(process.args) == parent.args):
            return None
        service_id = parent.service_id
        if name.program.split and name.source == "program" and name.name != parent.name:
            key = (parent.service_id, name.name)
            known = self._split.get(key)
            if known is None or known not in self._identities.services:
                if len(self._split) > 4096:
                    self._split.clear()
                known = self._split[key] = self._add_service(process, language, name, parent.overrides, top=parent.top)
            service_id = known
        else:
            name = Name(parent.name, "", "", parent.name_source, {}, name.program)
        return self._member(process, service_id, parent.top, name, language, parent.overrides)

    def join_fork(self, pid: int, start_unix_ns: int, parent: Member) -> Member:
        """As `join`, from a fork record alone: the child may be gone already, its requests are not."""
        entry = self._identities.processes[parent.process_id]
        process_id = self._identities.next_id()
        self._identities.add_process(
            ProcessEntry(
                process_id, pid, start_unix_ns, entry.executable, entry.command, entry.language, parent.service_id
            )
        )
        return Member(
            process_id, parent.service_id, parent.top, parent.name, parent.name_source, parent.language,
            parent.overrides, parent.args,
        )  # fmt: skip

    def end(self, member: Member) -> list[int]:
        """The process is gone, or no longer watched.  Gives the services that nothing refers to any more."""
        gone = self._identities.end_process(member.process_id)
        if gone:
            self._split = {key: value for key, value in self._split.items() if value not in gone and key[0] not in gone}
        return gone

    def _name(self, process: Process, language: Language, overrides: Overrides) -> Name:
        return name_service(
            process,
            language,
            name=overrides.name or self._service_name,
            namespace=overrides.namespace or self._service_namespace,
        )

    def _add_service(self, process: Process, language: Language, name: Name, overrides: Overrides, *, top: int) -> int:
        instance_id = name.attributes.get(semconv.SERVICE_INSTANCE_ID, "") or f"{self._host.name}:{top}"
        service = Service(
            id=self._identities.next_id(),
            name=name.name,
            namespace=name.namespace,
            instance_id=instance_id,
            language=language.name,
            resource=resource_of(process, language, name, self._host, instance_id=instance_id),
            exports=ALL_SIGNALS if overrides.exports is None else overrides.exports,
            sampler=overrides.sampler,
            routes_incoming=overrides.routes_incoming,
            routes_outgoing=overrides.routes_outgoing,
            features=overrides.features,
        )
        self._identities.add_service(service)
        return service.id

    def _member(
        self, process: Process, service_id: int, top: int, name: Name, language: Language, overrides: Overrides
    ) -> Member:
        process_id = self._identities.next_id()
        self._identities.add_process(
            ProcessEntry(
                id=process_id,
                pid=process.pid,
                start_unix_ns=process.start_unix_ns,
                executable=sys.intern(clean(process.exe, 4096)),
                command=command_of(process),
                language=language.name,
                service_id=service_id,
            )
        )
        return Member(
            process_id, service_id, top, name.name, name.source, language, overrides, hash(process.args)
        )  # fmt: skip
