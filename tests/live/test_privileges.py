"""The agent as an unprivileged user, with the capabilities that ``doctor`` lists and no other; and without one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from support import agent, truth, zoo, zoo_tls

pytestmark = pytest.mark.live

NOBODY = 65_534
REQUESTS = 300


def listed() -> list[str]:
    """What ``doctor`` says that is needed, as `setpriv` writes it."""
    done = subprocess.run(
        [sys.executable, "-m", "onlooker", "doctor", "--json"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(zoo.ROOT / "src")}, timeout=60,
    )  # fmt: skip
    checks = json.loads(done.stdout)["checks"]
    return [check["name"].removeprefix("CAP_").lower() for check in checks if check["name"].startswith("CAP_")]


def with_only(capabilities: Sequence[str]) -> list[str]:
    """A command that becomes nobody, with these capabilities."""
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    return ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--inh-caps", kept,
            "--ambient-caps", kept, "--bounding-set", kept, "--no-new-privs", "--"]  # fmt: skip


def start(directory: Path, configuration: dict[str, object], capabilities: Sequence[str]) -> agent.Agent:
    directory.chmod(0o755)
    for parent in directory.parents:
        if parent.stat().st_mode & 0o005 != 0o005 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    return agent.Agent(directory, configuration, through=with_only(capabilities))


def is_seen_into(onlooker: agent.Agent) -> bool:
    return onlooker.metric("onlooker_tls_processes") == 1


def test_what_doctor_lists_is_enough(place, tmp_path: Path) -> None:
    capabilities = listed()
    assert {"bpf", "perfmon", "sys_ptrace"} <= set(capabilities)
    with zoo.server("nginx-gunicorn-unix") as plain, zoo.server(zoo_tls.SERVERS["nginx"]) as secure:
        configuration = agent.selecting(cmd_args=[f"*{plain.directory}*", f"*{secure.directory}*"])
        onlooker = start(tmp_path, configuration, capabilities)
        try:
            onlooker.wait_ready()
            uids = [line.split()[1] for line in Path(f"/proc/{onlooker.pid}/status").read_text().splitlines()
                    if line.startswith("Uid:")]  # fmt: skip
            assert uids == [str(NOBODY)]
            watched = [pid for server in (plain, secure) for name in server.pids for pid in server.tree(name)]
            onlooker.wait_watched(watched)
            agent.wait_until(lambda: onlooker.metric("onlooker_tls_processes") >= 1, "TLS is seen into", 20)
            for server, client in ((plain, "c"), (secure, zoo_tls.client("curl"))):
                onlooker.spans()
                plan = truth.plan(1, REQUESTS, pages=server.spec.pages, run=f"nobody-{server.spec.name}")
                with zoo.client(client, server.port, plan) as started:
                    made = started.run()
                spans = onlooker.spans(expected=REQUESTS, kind="server")
                served = truth.select(spans, kind="server", pids=set(server.tree()))
                truth.compare(made, served).check(min_share=0)
            assert onlooker.losses() == {}
            assert "WARN" not in onlooker.log(), onlooker.log()
            onlooker.stop()
        finally:
            onlooker.kill()


@pytest.mark.parametrize("missing", ["bpf", "perfmon"])
def test_without_these_it_says_so_and_ends(tmp_path: Path, missing: str) -> None:
    with zoo.server("c-threads") as server:
        onlooker = start(tmp_path, agent.selecting(pids=[server.pid]), [one for one in listed() if one != missing])
        try:
            assert onlooker.process.wait(20) == 3
            assert f"CAP_{missing.upper()}" in onlooker.log()
        finally:
            onlooker.kill()


def test_without_ptrace_a_program_of_another_user_is_not_found_by_its_path(tmp_path: Path) -> None:
    program = tmp_path / "server-of-another"
    shutil.copy(zoo.BIN / "c-server", program)
    spec = zoo.ServerSpec("of-another", "cpp", lambda at: {"server": [str(program), str(at.port)]}, (str(program),))
    with zoo.server(spec) as server:
        seen = {}
        for capabilities in (listed(), [one for one in listed() if one != "sys_ptrace"]):
            own = tmp_path / f"with-{len(capabilities)}"
            own.mkdir()
            configuration = {"discovery": {"instrument": [{"exe_path": str(program)}]}}
            onlooker = start(own, configuration, capabilities)
            try:
                onlooker.wait_ready()
                seen["sys_ptrace" in capabilities] = onlooker.metric("onlooker_instrumented_processes")
                onlooker.stop()
            finally:
                onlooker.kill()
        assert server.pid
    assert seen == {True: 1, False: 0}


@contextlib.contextmanager
def own_libraries(directory: Path) -> Iterator[tuple[zoo.Program, list[Path]]]:
    """An HTTPS server by copies of the TLS libraries, in that directory."""
    directory.mkdir()
    libraries = []
    found = subprocess.run(["ldd", str(shutil.which("openssl"))], capture_output=True, text=True, check=True).stdout
    for line in found.splitlines():
        if "libssl" in line or "libcrypto" in line:
            libraries.append(directory / Path(line.split("=>")[1].split()[0]).name)
            shutil.copy(line.split("=>")[1].split()[0], libraries[-1])
            libraries[-1].chmod(0o700)
    made, key = zoo_tls.certificate()
    server = zoo.Program(
        ["env", f"LD_LIBRARY_PATH={directory}", "openssl", "s_server", "-accept", str(agent.free_port()), "-www",
         "-quiet", "-key", str(key), "-cert", str(made)], directory, name="openssl",
    )  # fmt: skip
    try:
        agent.wait_until(lambda: str(directory) in Path(f"/proc/{server.pid}/maps").read_text(), "they are mapped")
        yield server, libraries
    finally:
        server.stop()


def seen_into(server: zoo.Program, tmp_path: Path, capability: str) -> dict[bool, float]:
    """Whether TLS of a server is seen into, with a capability and without it."""
    seen = {}
    for capabilities in (listed(), [one for one in listed() if one != capability]):
        directory = tmp_path / f"with-{len(capabilities)}"
        directory.mkdir()
        onlooker = start(directory, agent.selecting(pids=[server.pid]), capabilities)
        try:
            onlooker.wait_ready()
            onlooker.wait_watched([server.pid])
            has = capability in capabilities
            with contextlib.suppress(agent.AgentFailure):
                agent.wait_until(partial(is_seen_into, onlooker), "it is seen into", 20 if has else 4)
            seen[has] = onlooker.metric("onlooker_tls_processes")
            onlooker.stop()
        finally:
            onlooker.kill()
    return seen


def test_without_the_right_to_read_a_library_of_its_owner_stays_closed(tmp_path: Path, place) -> None:
    """A TLS library that only root may open: with CAP_DAC_READ_SEARCH it is seen into, without it is not."""
    with own_libraries(place.directory / "closed") as (server, _):
        assert seen_into(server, tmp_path, "dac_read_search") == {True: 1, False: 0}


def test_without_checkpoint_restore_a_library_that_was_deleted_stays_closed(tmp_path: Path, place) -> None:
    """A TLS library that was deleted since its process began: only the kernel's own mapping still leads to it."""
    with own_libraries(place.directory / "deleted") as (server, libraries):
        for library in libraries:
            library.unlink()
        assert seen_into(server, tmp_path, "checkpoint_restore") == {True: 1, False: 0}


def test_every_listed_capability_is_missed_by_a_test() -> None:
    """Those above; so whoever adds one to `doctor` shows what breaks without it."""
    assert set(listed()) == {"bpf", "perfmon", "sys_ptrace", "dac_read_search", "checkpoint_restore"}
