import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onlooker.discover import proc as proc_module
from onlooker.discover.proc import CMDLINE_LIMIT, ENVIRON_LIMIT, ProcFs, parse_stat
from support.fake_proc import BOOT_UNIX_NS, FakeProc

STAT = b"4711 (%s) S 12 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 7 0 166478 1 2 3 94415122481152 5 140728275879744 0\n"


def test_stat_gives_the_identity_of_a_process() -> None:
    stat = parse_stat(STAT % b"cat")
    assert stat is not None
    assert (stat.comm, stat.state, stat.parent, stat.threads, stat.start_ticks) == ("cat", "S", 12, 7, 166478)
    assert stat.image == (94415122481152, 140728275879744)
    assert not stat.is_kernel_thread


@pytest.mark.parametrize("comm", [b") S 1 (", b"a b\nc", b"", b"((((", b"\xff\xfe)", b")"])
def test_a_hostile_name_does_not_shift_the_fields(comm: bytes) -> None:
    stat = parse_stat(STAT % comm)
    assert stat is not None
    assert (stat.parent, stat.start_ticks) == (12, 166478)


def test_zombies_and_garbage_are_nothing() -> None:
    assert parse_stat((STAT % b"x").replace(b") S", b") Z")) is None
    assert parse_stat(b"") is None
    assert parse_stat(b"1 (x) S 1 2") is None
    assert parse_stat(b"1 (x) S " + b"y " * 30) is None


@given(st.binary(max_size=400))
def test_stat_never_raises(raw: bytes) -> None:
    parse_stat(raw)


def test_hidden_addresses_are_no_image() -> None:
    raw = STAT.replace(b"94415122481152", b"1").replace(b"140728275879744", b"0") % b"x"
    stat = parse_stat(raw)
    assert stat is not None
    assert stat.image == (0, 0)


def test_a_process_reads_what_stands_in_proc(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    container = "a" * 63 + "b"
    fake.add(
        70,
        exe="/srv/shop/bin/shop (deleted)",
        args=["shop", "--port", "8080"],
        environ={"OTEL_SERVICE_NAME": "shop", "SECRET_TOKEN": "do not keep"},
        cwd="/srv/shop",
        cgroup=f"0::/system.slice/docker-{container}.scope\n",
        ports=(8080, 9090),
        uid=33,
        start_ticks=250,
    )
    process = fake.open().process(70)
    assert process is not None
    assert process.exe == "/srv/shop/bin/shop"
    assert process.exe_name == "shop"
    assert process.args == ("shop", "--port", "8080")
    assert process.environ == {"OTEL_SERVICE_NAME": "shop"}
    assert process.cwd == "/srv/shop"
    assert process.container_id == container
    assert process.ports == {8080, 9090}
    assert process.uid == 33
    assert process.start_unix_ns == BOOT_UNIX_NS + 2_500_000_000
    assert process.still_there()


def test_a_vanished_process_is_empty_and_raises_nothing(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70)
    process = fake.open().process(70)
    fake.remove(70)
    assert process is not None
    assert not process.still_there()
    assert (process.exe, process.args, process.environ, process.cwd) == ("", (), {}, "")
    assert (process.uid, process.container_id, process.ports) == (-1, "", frozenset())
    assert list(process.mapped_files()) == []
    assert fake.open().process(70) is None
    assert process.file("/etc/passwd", 10) == b""


def test_reads_are_bounded(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    directory = fake.add(70)
    (directory / "cmdline").write_bytes(b"x" * (2 * CMDLINE_LIMIT))
    (directory / "environ").write_bytes(b"A=" + b"x" * ENVIRON_LIMIT + b"\0OTEL_SERVICE_NAME=beyond\0")
    process = fake.open().process(70)
    assert process is not None
    assert sum(map(len, process.args)) == CMDLINE_LIMIT
    assert process.environ == {}


def test_maps_are_streamed_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProc(tmp_path)
    line = b"7f00-7f01 r-xp 00000000 08:01 %d /usr/lib/lib%d.so\n"
    fake.add(70, maps=b"".join(line % (n, n) for n in range(100)) + b"7f02-7f03 rw-p 0 00:00 0 [heap]\n")
    process = fake.open().process(70)
    assert process is not None
    assert list(process.mapped_files()) == [b"lib%d.so" % n for n in range(100)]
    monkeypatch.setattr(proc_module, "MAPS_LIMIT", 200)
    assert len(list(process.mapped_files())) <= 5


def test_one_table_of_sockets_is_read_for_a_namespace(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70, ports=(8080,))
    fake.add(71, ports=(8081,))
    fake.add(72, ports=(8080,), netns="net:[2]")
    proc = fake.open()
    assert set(proc.listening(70).values()) == {8080, 8081}
    fake.listen(71, 8082)
    assert set(proc.listening(71).values()) == {8080, 8081}, "kept until it is told to forget"
    proc.forget_listening()
    assert set(proc.listening(71).values()) == {8080, 8081, 8082}
    assert set(proc.listening(72).values()) == {8080}


def test_reading_sockets_ends_at_the_first_that_does_not_listen(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    directory = fake.add(70, ports=(8080,))
    table = directory / "net" / "tcp"
    row = table.read_text().splitlines()[1]
    table.write_text(table.read_text() + row.replace(" 0A ", " 01 ") + "\n" + row.replace(":1F90", ":1F91") + "\n")
    assert set(fake.open().listening(70).values()) == {8080}


def test_only_regular_files_of_a_target_are_opened(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path)
    fake.add(70)
    process = fake.open().process(70)
    assert process is not None
    fake.file("/srv/app/package.json", "{}")
    os.mkfifo(fake.files / "srv/app/fifo")
    (fake.files / "srv/app/link").symlink_to("/etc/passwd")
    assert process.file("/srv/app/package.json", 100) == b"{}"
    assert process.file("/srv/app/fifo", 100) == b""
    assert process.file("/srv/app/link", 100) == b""
    assert process.file("/srv/app", 100) == b""
    assert process.file("relative", 100) == b""
    assert process.file("/a\0b", 100) == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    comm=st.binary(max_size=15).filter(lambda b: b"\0" not in b),
    files=st.dictionaries(
        st.sampled_from(["cmdline", "environ", "status", "cgroup", "maps", "stat"]), st.binary(max_size=600)
    ),
    table=st.binary(max_size=600),
)
def test_nothing_in_proc_makes_a_reader_raise(
    tmp_path_factory: pytest.TempPathFactory, comm: bytes, files: dict[str, bytes], table: bytes
) -> None:
    fake = FakeProc(tmp_path_factory.mktemp("proc"))
    directory = fake.add(70, comm=comm)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    (directory / "net" / "tcp").unlink()
    (directory / "net" / "tcp").write_bytes(b"head\n" + table)
    process = fake.open().process(70)
    if process is not None:
        for text in (process.exe, process.cwd, process.container_id, *process.args, *process.environ.values()):
            text.encode("utf-8")
        assert process.uid >= -1
        assert all(port >= 0 for port in process.ports)
        list(process.mapped_files())


def test_the_own_process_is_found_in_the_real_proc() -> None:
    process = ProcFs().process(os.getpid())
    assert process is not None
    assert process.exe == os.path.realpath("/proc/self/exe")
    assert process.stat.parent == os.getppid()
    assert process.uid == os.geteuid()
    assert process.cwd == os.getcwd()
    assert os.getpid() in ProcFs().pids()
