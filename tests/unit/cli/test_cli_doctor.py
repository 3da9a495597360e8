import contextlib
import io
import json
import os
import platform
import socket
import ssl
import stat
import subprocess
import sys
import threading
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
    check_clock,
    check_host,
    check_kernel,
    check_outputs,
    check_privileges,
)
from onlooker.cli._process import check_process
from onlooker.config import Config, Loaded, load_text
from onlooker.errors import ConfigError
from onlooker.kernel.sockmap import readable_in_sockmap

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


def test_clock(tmp_path: Path) -> None:
    source = tmp_path / "sys/devices/system/clocksource/clocksource0"
    source.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (source / "current_clocksource").write_text("tsc\n")
    offsets = tmp_path / "proc/self/timens_offsets"
    offsets.write_text("monotonic           0         0\nboottime            0         0\n")
    found = check_clock(tmp_path / "proc", tmp_path / "sys", 1500)
    assert states(found) == {"synchronised": OK, "source": OK}
    assert found[0].detail == "within 1.5 ms, says the kernel"
    (source / "current_clocksource").write_text("hpet\n")
    offsets.write_text("monotonic      -86400         0\nboottime            0         0\n")
    found = check_clock(tmp_path / "proc", tmp_path / "sys", None)
    assert states(found) == {"synchronised": INFO, "source": DEGRADED, "time namespace": DEGRADED}
    assert "-86400 s" in found[-1].detail


def test_a_receiver_whose_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(3):
                with contextlib.suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as peer:
                    peer.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        endpoint = f"endpoint: 'https://127.0.0.1:{server.getsockname()[1]}'"
        off = "store: {enabled: false}\nweb: {port: 0}\nprometheus_export: {port: 0}\n"
        found = [
            check_outputs(config(f"{off}otel_traces_export: {{{endpoint}{more}}}"))[-1]
            for more in ("", f", ca_file: {certificate}", ", insecure_skip_verify: true")
        ]
        thread.join(10)
    assert [check.state for check in found] == [DEGRADED, OK, OK]
    assert "self-signed" in found[0].detail
    assert "certificate is trusted" in found[1].detail


def test_a_disk_with_less_room_than_the_store_may_take(tmp_path: Path) -> None:
    (found,) = check_outputs(
        config(f"store: {{path: {tmp_path}/s, max_bytes: 900TB}}\nweb: {{port: 0}}\nprometheus_export: {{port: 0}}")
    )
    assert found.state == DEGRADED
    assert "MB are free" in found.detail


def test_sockets_in_a_sockmap_are_tried() -> None:
    told, detail = readable_in_sockmap()
    if os.geteuid() == 0:
        assert told is not None, detail
    assert detail
    if told is False:
        assert "of 5 bytes" in detail


def test_what_would_be_seen_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid()
    refused = check_process(pid, loaded())  # onlooker does not watch itself
    assert refused[-1].name == "would be seen"
    assert refused[-1].state == DEGRADED
    assert refused[-1].detail.startswith("nothing of it: ")
    with subprocess.Popen([sys.executable, "-c", "import ssl; print(flush=True); input()"], stdin=-1, stdout=-1) as one:
        assert one.stdout is not None
        one.stdout.readline()
        found = check_process(
            one.pid, load_text("", name="f", environ={}, flags={"target_pids": ("--pid", str(one.pid))})
        )
        one.communicate(b"\n")
    by_name = {check.name: check for check in found}
    assert by_name["selection"].state == OK
    assert by_name["container"].detail.endswith("the namespaces of onlooker")
    assert by_name["would be seen"].detail.startswith("http, http2, postgres")
    if platform.machine() == "x86_64" and "TLS" in by_name:
        assert "SSL_read" in " ".join(check.detail for check in found if check.name == "probe site")


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
        assert set(archive.namelist()) == {
            "doctor.json", "configuration.yml", "notes.txt", "system.json", "metrics.txt"
        }  # fmt: skip
        assert not [name for name in archive.namelist() if b"hush" in archive.read(name)]
    with pytest.raises(ConfigError, match="File exists"):
        doctor.main(told, [], True, str(path), io.StringIO())
