import io
import json
import os
import socket
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from onlooker.cli import doctor
from onlooker.cli._host import (
    DEGRADED,
    FAILED,
    INFO,
    OK,
    Check,
    check_host,
    check_kernel,
    check_outputs,
    check_privileges,
)
from onlooker.config import Config, Loaded, load_text
from onlooker.errors import ConfigError

BIT = {
    "BPF": 39,
    "PERFMON": 38,
    "SYS_PTRACE": 19,
    "DAC_READ_SEARCH": 2,
    "CHECKPOINT_RESTORE": 40,
    "SYS_ADMIN": 21,
    "NET_BIND_SERVICE": 10,
}


def loaded(text: str = "") -> Loaded:
    return load_text(
        f"store: {{enabled: false}}\nweb: {{port: 0}}\nprometheus_export: {{port: 0}}\n{text}",
        name="f",
        environ={},
        flags={},
    )


def config(text: str = "") -> Config:
    return load_text(text, name="f", environ={}, flags={}).config


def a_proc(root: Path, *capabilities: str, mounts: str = "", paranoid: str = "2") -> Path:
    (root / "self/ns").mkdir(parents=True)
    (root / "sys/kernel").mkdir(parents=True)
    mask = sum(1 << BIT[name] for name in capabilities)
    (root / "self/status").write_text(f"Name:\tx\nCapEff:\t{mask:016x}\n")
    (root / "self/ns/pid").touch()
    (root / "mounts").write_text(mounts)
    (root / "sys/kernel/perf_event_paranoid").write_text(paranoid + "\n")
    return root


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_privileges(tmp_path: Path) -> None:
    all_of_them = ("BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH", "CHECKPOINT_RESTORE")
    assert set(states(check_privileges(config(), a_proc(tmp_path / "a", *all_of_them))).values()) == {OK}
    none = states(check_privileges(config(), a_proc(tmp_path / "b", paranoid="4")))
    assert (none["CAP_BPF"], none["CAP_PERFMON"], none["CAP_SYS_PTRACE"]) == (FAILED, FAILED, DEGRADED)
    assert none["perf_event_paranoid"] == DEGRADED
    admin = check_privileges(config(), a_proc(tmp_path / "c", "SYS_ADMIN"))
    assert states(admin)["CAP_BPF"] == OK
    assert "by CAP_SYS_ADMIN" in admin[0].detail
    assert states(admin)["CAP_SYS_PTRACE"] == DEGRADED
    low = states(check_privileges(config("web: {port: 80}"), a_proc(tmp_path / "d", *all_of_them)))
    assert low["CAP_NET_BIND_SERVICE"] == FAILED


@pytest.mark.parametrize(
    ("btf", "lockdown", "expected"),
    [
        (True, None, {"BTF": OK, "lockdown": OK}),
        (False, "[none] integrity confidentiality", {"BTF": FAILED, "lockdown": OK}),
        (True, "none [integrity] confidentiality", {"BTF": OK, "lockdown": OK}),
        (True, "none integrity [confidentiality]", {"BTF": OK, "lockdown": FAILED}),
    ],
)
def test_kernel(tmp_path: Path, btf: bool, lockdown: str | None, expected: dict[str, str]) -> None:
    (tmp_path / "kernel/btf").mkdir(parents=True)
    (tmp_path / "kernel/security").mkdir()
    if btf:
        (tmp_path / "kernel/btf/vmlinux").touch()
    if lockdown:
        (tmp_path / "kernel/security/lockdown").write_text(lockdown + "\n")
    assert states(check_kernel(tmp_path, "6.1", "x86_64")) == {"release": INFO, **expected}


def test_host(tmp_path: Path) -> None:
    bare = states(check_host(a_proc(tmp_path / "a"), (-1, -1)))
    assert bare == {"bpf": INFO, "cgroup2": INFO, "tracefs": INFO, "pid namespace": DEGRADED, "locked memory": INFO}
    mounts = (
        "bpf /sys/fs/bpf bpf rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nproc /proc proc rw,hidepid=invisible 0 0\n"
    )
    rich = states(check_host(a_proc(tmp_path / "b", mounts=mounts), (65536, 65536)))
    assert (rich["bpf"], rich["cgroup2"], rich["hidepid"]) == (OK, OK, DEGRADED)


def test_outputs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        taken, silent = server.getsockname()[1], closed.getsockname()[1]
        text = f"""\
store: {{path: {tmp_path}/deep/below/store.sqlite}}
web: {{port: {taken}}}
prometheus_export: {{port: 0}}
otel_traces_export: {{endpoint: 'http://127.0.0.1:{taken}'}}
otel_metrics_export: {{endpoint: 'http://127.0.0.1:{silent}'}}
"""
        found = states(check_outputs(config(text)))
    assert found == {"store": OK, "web": DEGRADED, "otel_traces_export": OK, "otel_metrics_export": DEGRADED}


def test_the_exit_code_says_whether_it_can_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, code, told in (
        (FAILED, 3, "cannot work here"),
        (DEGRADED, 0, "with 1 restriction."),
        (OK, 0, "can work here."),
    ):
        monkeypatch.setattr(doctor, "examine", lambda loaded, pids, state=state: [Check("g", "n", state, "d", "a")])
        out = io.StringIO()
        assert doctor.main(loaded(), [], False, None, out) == code
        assert out.getvalue().startswith(f"{state:<8} g: n: d -> a\n")
        assert told in out.getvalue().splitlines()[-1]
        out = io.StringIO()
        assert doctor.main(loaded(), [], True, None, out) == code
        assert json.loads(out.getvalue())["can_work"] is (code == 0)


def test_this_host_can_be_examined_with_a_process() -> None:
    checks = doctor.examine(loaded(), [os.getpid(), 4_194_303])
    groups = {check.group for check in checks}
    assert {"kernel", "privileges", "mounts", "host", f"process {os.getpid()}"} <= groups
    assert any(check.detail == os.path.realpath(sys.executable) for check in checks)
    assert any(check.detail == "there is no such process" for check in checks)


def test_nothing_of_other_programs_steers_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda loaded, pids: [Check("g", "n", OK, "\x1b[2Jx\ny\u202e", "")])
    out = io.StringIO()
    doctor.main(loaded(), [], False, None, out)
    assert out.getvalue().splitlines()[0] == r"ok       g: n: \x1b[2Jx\ny\u202e"


def test_the_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(doctor, "examine", lambda loaded, pids: [Check("kernel", "BTF", OK, "there [red]x", "")])
    out = Terminal()
    assert doctor.main(loaded(), [], False, None, out) == 0
    assert "kernel" in out.getvalue()
    assert "there [red]x" in out.getvalue()


def test_the_support_archive_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda loaded, pids: [])
    path = tmp_path / "b.zip"
    told = loaded(
        "otel_traces_export: {endpoint: 'http://u:hush@h', headers: {authorization: hush}}\n"
        "grafana: {otlp: {cloud_api_key: hush}}"
    )
    assert doctor.main(told, [], True, str(path), io.StringIO()) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {"doctor.json", "configuration.yml", "notes.txt", "system.json"}
        assert not [name for name in archive.namelist() if b"hush" in archive.read(name)]
    with pytest.raises(ConfigError, match="File exists"):
        doctor.main(told, [], True, str(path), io.StringIO())
