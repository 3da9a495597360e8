import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onlooker import semconv
from onlooker.batches import Identities
from onlooker.config.loader import load_text
from onlooker.config.selection import Selection, Selector
from onlooker.discover.naming import Host
from onlooker.discover.watch import EXEC, EXIT, FORK, LISTEN, Watcher
from onlooker.errors import BpfError
from support.fake_proc import BOOT_UNIX_NS, FakeProc

PYTHON, NODE = "/usr/bin/python3.11", "/usr/bin/node"
RECORD = np.dtype(
    [("kind", "u1"), ("event", "u1"), ("watched", "u1"), ("family", "u1"), ("port", "u2"), ("pad0", "u2"),
     ("tgid", "u4"), ("parent_tgid", "u4"), ("mono_ns", "u8"), ("start_boot_ns", "u8"), ("exit_code", "u4"),
     ("pad1", "u4"), ("comm", "u1", 16), ("pad2", "u1", 64)]
)  # fmt: skip


def selection_of(yaml: str) -> Selection:
    return load_text(yaml, name="test.yml", environ={}, flags={}).selection


def by_path(pattern: str) -> Selection:
    return selection_of(f"discovery: {{instrument: [{{exe_path: {pattern!r}}}]}}")


def by_port(port: int) -> Selection:
    return selection_of(f"open_port: {port}")


class RecordingFilter:
    """Stands in for the kernel's map, which unit tests cannot have."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.trusted: dict[int, bool] = {}
        self.refuse: set[int] = set()

    def watch(self, pid: int) -> None:
        if pid in self.refuse:
            raise BpfError("the map is full")
        self.pids.add(pid)

    def unwatch(self, pid: int) -> None:
        self.pids.discard(pid)

    def set_context(self, pid: int, trust_thread: bool) -> None:
        self.trusted[pid] = trust_thread


class Scene:
    def __init__(self, fake: FakeProc, selection: Selection, **more: Any) -> None:
        self.fake = fake
        self.kernel = RecordingFilter()
        self.identities = Identities(linger=more.pop("linger", 4096))
        self.now_s = 100.0
        self.gone: list[int] = []
        self.watcher = Watcher(
            fake.open(), selection, self.identities, self.kernel, Host("box"), own_pid=9,
            monotonic_s=lambda: self.now_s, unix_ns=lambda: BOOT_UNIX_NS + int(self.now_s * 1e9),
            on_gone=self.gone.extend, **more,
        )  # fmt: skip
        self.watcher.start()

    def feed(self, *events: tuple[Any, ...]) -> None:
        rows = np.zeros(len(events), RECORD)
        for row, (event, pid, fields) in zip(rows, events, strict=True):
            row["event"], row["tgid"] = event, pid
            row["start_boot_ns"] = pid * 10 * 10_000_000  # as `FakeProc.add` has it by default
            for name, value in fields.items():
                row[name] = value
        self.watcher.apply(rows)

    def later(self, seconds: float) -> float:
        self.now_s += seconds
        return self.watcher.tick()

    def service(self, pid: int) -> str:
        entry = self.identities.processes[self.identities.by_pid[pid]]
        return self.identities.services[entry.service_id].name

    def instance(self, pid: int) -> str:
        entry = self.identities.processes[self.identities.by_pid[pid]]
        return self.identities.services[entry.service_id].instance_id

    def reason(self, pid: int) -> str:
        return self.watcher.decisions[pid].reason


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_the_first_scan_finds_what_is_selected_and_says_why(fake: FakeProc) -> None:
    fake.add(9, exe="/srv/shop/bin/shop")  # onlooker's own pid
    fake.add(70, exe="/srv/shop/bin/shop")
    fake.add(71, exe="/usr/bin/other")
    fake.add(72, exe="", flags=0x00200040)
    fake.add(73, exe="")
    scene = Scene(fake, by_path("*/shop"))
    assert scene.kernel.pids == {70}
    assert scene.service(70) == "shop"
    assert scene.instance(70) == "box:70"
    assert {pid: scene.reason(pid) for pid in (9, 70, 71, 72, 73)} == {
        9: "onlooker itself",
        70: "selected by discovery.instrument[0]",
        71: "the path of its executable does not match",
        72: "a kernel thread",
        73: "its executable cannot be read",
    }


def test_a_process_is_selected_by_the_port_that_it_listens_on(fake: FakeProc) -> None:
    fake.add(70, ports=(8080,))
    fake.add(71, ports=(9090,))
    scene = Scene(fake, by_port(8080))
    assert scene.kernel.pids == {70}
    assert "listens on none" in scene.reason(71)


def test_a_port_that_opens_later_is_seen_from_the_record(fake: FakeProc) -> None:
    fake.add(70, exe=PYTHON, args=["python3", "/srv/web.py"])
    scene = Scene(fake, by_port(8080))
    assert scene.kernel.pids == set()
    scene.feed((LISTEN, 70, {"port": 8080}))
    assert scene.kernel.pids == {70}
    assert scene.service(70) == "web"


def test_a_watched_process_stays_when_it_closes_its_port(fake: FakeProc) -> None:
    fake.add(70, ports=(8080,))
    scene = Scene(fake, by_port(8080))
    (fake.root / "70" / "fd" / "3").unlink()
    scene.watcher.rescan(full=True)
    assert scene.kernel.pids == {70}


def test_a_new_program_is_looked_at_when_it_runs(fake: FakeProc) -> None:
    scene = Scene(fake, by_path("*/shop"))
    fake.add(70, exe="/srv/shop")
    fake.add(71, exe="/bin/true")
    scene.feed((EXEC, 70, {}), (EXEC, 71, {}), (EXEC, 72, {}))
    assert scene.kernel.pids == {70}
    assert scene.watcher.counters.vanished == 1


def test_children_of_a_watched_process_are_watched_and_share_its_instance(fake: FakeProc) -> None:
    fake.add(70, exe=PYTHON, args=["gunicorn: master [shop:app]"], image=(1, 2), ports=(8000,))
    fake.add(71, exe=PYTHON, args=["gunicorn: worker [shop:app]"], image=(1, 2), parent=70)
    fake.add(72, exe=PYTHON, args=["python3", "-c", "from multiprocessing.spawn import x"], parent=70)
    fake.add(73, exe=PYTHON, args=["python3", "/srv/other.py"], parent=70)
    fake.add(74, exe="/bin/sleep", parent=70)
    scene = Scene(fake, by_port(8000))
    assert scene.kernel.pids == {70, 71, 72, 73}
    assert [scene.instance(pid) for pid in (70, 71, 72, 73)] == ["box:70", "box:70", "box:70", "box:73"]
    assert [scene.service(pid) for pid in (70, 71, 72, 73)] == ["shop", "shop", "shop", "other"]
    assert scene.reason(71) == "child of 70"


def test_parents_are_looked_at_first_whatever_their_pids(fake: FakeProc) -> None:
    fake.add(70, image=(1, 2), parent=900, start_ticks=20)
    fake.add(900, image=(1, 2), ports=(8000,), start_ticks=10)
    scene = Scene(fake, by_port(8000))
    assert scene.kernel.pids == {70, 900}
    assert scene.instance(70) == "box:900"


def test_a_parent_that_is_selected_late_brings_its_children(fake: FakeProc) -> None:
    fake.add(70, exe=NODE, args=["node", "/srv/cluster.js"])
    fake.add(71, exe=NODE, args=["node", "/srv/cluster.js"], parent=70)
    scene = Scene(fake, by_port(8000))
    scene.feed((LISTEN, 70, {"port": 8000}))
    assert scene.kernel.pids == {70, 71}
    assert scene.instance(71) == "box:70"
    assert scene.kernel.trusted == {70: False, 71: False}


def test_a_forked_child_is_registered_although_it_is_gone_already(fake: FakeProc) -> None:
    fake.add(70, ports=(8000,))
    scene = Scene(fake, by_port(8000))
    scene.feed((FORK, 500, {"parent_tgid": 70, "watched": 1}), (EXIT, 500, {}))
    entry = scene.identities.processes[scene.identities.by_pid[500]]
    assert entry.ended
    assert entry.start_unix_ns == BOOT_UNIX_NS + 5000 * 10_000_000
    assert scene.instance(500) == "box:70"
    assert 500 not in scene.watcher.decisions
    assert scene.kernel.pids == {70}


def test_a_dead_process_is_taken_out_of_the_filter_once_its_exit_was_read(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/shop")
    scene = Scene(fake, by_path("/srv/*"))
    scene.kernel.pids.add(71)  # let through by the kernel, never known here
    scene.feed((EXIT, 70, {}), (EXIT, 71, {}))
    assert scene.kernel.pids == set()
    assert scene.identities.processes[scene.identities.by_pid[70]].ended


def test_a_pid_that_a_new_child_took_over_stays_in_the_filter(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/shop")
    fake.add(71, exe="/srv/shop", parent=70)
    scene = Scene(fake, by_path("/srv/*"))
    scene.feed((EXIT, 71, {}), (FORK, 71, {"parent_tgid": 70, "watched": 1, "start_boot_ns": 99_000_000_000}))
    assert scene.kernel.pids == {70, 71}
    assert not scene.identities.processes[scene.identities.by_pid[71]].ended


def test_a_child_that_runs_another_program_is_let_go(fake: FakeProc) -> None:
    fake.add(70, ports=(8000,), exe="/srv/shop")
    scene = Scene(fake, by_port(8000))
    fake.add(71, exe="/bin/sleep", parent=70)
    scene.kernel.pids.add(71)  # as the kernel does at fork
    scene.feed((FORK, 71, {"parent_tgid": 70, "watched": 1}), (EXEC, 71, {"watched": 1}))
    assert scene.kernel.pids == {70}
    assert not scene.watcher.decisions[71].watched


def test_all_that_a_started_command_starts_is_watched(fake: FakeProc) -> None:
    fake.add(70, exe="/usr/bin/make")
    command = Selector(kind="glob", source="the command line", pids=((70, 70),), descendants=True)
    scene = Scene(fake, replace(by_path("/never"), selectors=(command,)))
    fake.add(71, parent=70, exe=NODE, args=["node", "/srv/shop/server.js"], image=(5, 6))
    scene.feed((FORK, 71, {"parent_tgid": 70, "watched": 1}), (EXEC, 71, {"watched": 1}))
    assert scene.kernel.pids == {70, 71}
    assert scene.reason(71) == "started by 70"
    assert scene.instance(71) != scene.instance(70)
    fake.add(71, parent=1, exe="/srv/late", image=(7, 8))  # it ran another program after its parent had gone
    scene.feed((EXIT, 70, {}), (EXEC, 71, {"watched": 1}))
    assert scene.kernel.pids == {71}
    assert scene.service(71) == "late"


def test_a_child_that_the_kernel_watches_without_our_knowing_is_decided(fake: FakeProc) -> None:
    scene = Scene(fake, by_path("/srv/shop"))
    fake.add(71, exe="/bin/sleep")
    scene.kernel.pids.add(71)
    scene.feed((FORK, 71, {"parent_tgid": 70, "watched": 1}))
    assert scene.kernel.pids == set()


def test_exec_of_a_selected_program_begins_a_new_service(fake: FakeProc) -> None:
    fake.add(70, exe="/bin/sh", args=["sh", "/srv/start-all.sh"])
    scene = Scene(fake, selection_of("discovery: {all: true}"))
    assert scene.service(70) == "start-all"
    fake.add(70, exe=PYTHON, args=["python3", "/srv/web.py"], image=(5, 6))
    scene.feed((EXEC, 70, {"watched": 1}))
    assert scene.service(70) == "web"
    assert [p.ended for p in scene.identities.processes.values()] == [True, False]


def test_a_reused_pid_is_another_process(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/shop", start_ticks=100)
    scene = Scene(fake, by_path("/srv/*"))
    first = scene.identities.by_pid[70]
    fake.add(70, exe="/srv/shop", start_ticks=900)
    scene.watcher.rescan()
    assert scene.identities.by_pid[70] != first
    assert scene.kernel.pids == {70}
    scene.feed((EXIT, 70, {"start_boot_ns": 100 * 10_000_000}))
    assert scene.watcher.decisions[70].watched, "the exit of the first one came late"


def test_the_end_of_a_process_ends_its_service_once_its_records_are_through(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/shop")
    scene = Scene(fake, by_path("/srv/*"), linger=0)
    service = scene.identities.processes[scene.identities.by_pid[70]].service_id
    scene.feed((EXIT, 70, {}))
    assert scene.gone == [service]
    assert scene.identities.services == {}


def test_a_rescan_finds_what_no_record_told(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/shop")
    scene = Scene(fake, by_path("/srv/*"))
    fake.remove(70)
    fake.add(71, exe="/srv/shop")
    wait_s = scene.later(0)
    assert wait_s > 0
    assert scene.kernel.pids == {70}
    scene.later(wait_s + 10)
    assert scene.kernel.pids == {71}
    assert 70 not in scene.watcher.decisions


def test_a_listener_that_no_record_told_is_found_within_a_minute(fake: FakeProc) -> None:
    fake.add(70)
    scene = Scene(fake, by_port(8080))
    fake.listen(70, 8080)
    for _ in range(6):
        scene.later(10)
    assert scene.kernel.pids == {70}


def test_a_daemon_that_forked_away_before_its_record_was_read_is_found(fake: FakeProc) -> None:
    scene = Scene(fake, by_port(8080))
    fake.add(71, exe="/usr/bin/d", ports=(8080,), start_ticks=705)  # pid 70 listened, forked and left
    scene.feed((EXEC, 70, {}), (LISTEN, 70, {"port": 8080}))
    scene.later(0.3)
    assert scene.kernel.pids == {71}


def test_looking_for_new_processes_is_throttled(fake: FakeProc) -> None:
    scene = Scene(fake, by_path("/srv/*"))
    scene.now_s += 1
    scene.feed((EXEC, 500, {}))
    fake.add(71, exe="/srv/a")
    scene.feed((EXEC, 501, {}))
    assert scene.kernel.pids == set(), "the second look would come too soon"
    assert 0 < scene.later(0) <= 0.25
    scene.later(0.3)
    assert scene.kernel.pids == {71}


def test_exclusion_wins_also_over_the_parent(fake: FakeProc) -> None:
    yaml = """
discovery:
  instrument: [{open_ports: 8000}]
  exclude_instrument: [{cmd_args: '*--admin*'}]
"""
    fake.add(70, exe="/srv/a", ports=(8000,))
    fake.add(71, exe="/srv/a", args=["a", "--admin"], parent=70)
    fake.add(72, exe="/srv/a", args=["a", "--admin"], ports=(8000,))
    scene = Scene(fake, selection_of(yaml))
    assert scene.kernel.pids == {70}
    assert scene.reason(71) == scene.reason(72) == "excluded by discovery.exclude_instrument[0]"


def test_default_exclusions_hold(fake: FakeProc) -> None:
    fake.add(70, exe="/usr/bin/otelcol-contrib")
    fake.add(71, exe=PYTHON, args=["/usr/bin/python3", "/usr/bin/onlooker", "run", "--all"])
    fake.add(72, exe="/usr/bin/a")
    scene = Scene(fake, selection_of("discovery: {all: true}"))
    assert scene.kernel.pids == {72}


def test_the_last_matching_entry_with_an_override_wins(fake: FakeProc) -> None:
    yaml = """
discovery:
  instrument:
    - {exe_path: '*', exports: [metrics], sampler: {name: always_off}, name: first}
    - {open_ports: 8000, exports: [], metrics: {features: [application]}}
    - {exe_path: '*/shop', routes: {incoming: [/a]}}
"""
    fake.add(70, exe="/srv/shop", ports=(8000,))
    fake.add(71, exe="/srv/other", ports=(8000,))
    fake.add(72, exe="/srv/other")
    scene = Scene(fake, selection_of(yaml))
    shop, other, third = (
        scene.identities.services[scene.identities.processes[scene.identities.by_pid[pid]].service_id]
        for pid in (70, 71, 72)
    )
    assert (shop.exports, shop.sampler, shop.routes_incoming) == (frozenset(), ("always_off", ""), ("/a",))
    assert shop.features is None
    assert (other.exports, other.features) == (frozenset(), {"application"})
    assert third.exports == {"metrics"}
    assert third.name == "first"


def test_criteria_of_one_selector_are_all_required(fake: FakeProc) -> None:
    selector = "{exe_path: '*python*', cmd_args: '*web*', languages: python, open_ports: 8000-8010}"
    fake.add(70, exe=PYTHON, args=["python3", "web.py"], ports=(8005,))
    fake.add(71, exe=PYTHON, args=["python3", "job.py"], ports=(8006,))
    fake.add(72, exe=PYTHON, args=["python3", "web.py"], ports=(9000,))
    fake.add(73, exe=NODE, args=["node", "web.js"], ports=(8007,))
    assert Scene(fake, selection_of(f"discovery: {{instrument: [{selector}]}}")).kernel.pids == {70}


def test_language_alone_does_not_choose_programs_of_the_system(fake: FakeProc) -> None:
    yaml = "discovery: {instrument: [{languages: '*'}]}"
    fake.add(70, exe="/usr/sbin/rsyslogd")
    fake.add(71, exe="/usr/bin/a")
    scene = Scene(fake, selection_of(yaml), system_paths=("/usr/sbin/",))
    assert scene.kernel.pids == {71}


def test_pids_are_taken_whatever_they_run(fake: FakeProc) -> None:
    fake.add(70, exe="/usr/bin/alloy")
    fake.add(71, exe="/usr/bin/alloy")
    assert Scene(fake, selection_of("target_pids: 70")).kernel.pids == {70}


def test_selectors_on_pods_match_nothing_without_somebody_to_ask(fake: FakeProc) -> None:
    fake.add(70)
    scene = Scene(fake, selection_of("discovery: {instrument: [{k8s_namespace: shop}]}"))
    assert scene.kernel.pids == set()
    assert "not known" in scene.reason(70)


def test_young_processes_wait_if_asked_to(fake: FakeProc) -> None:
    scene = Scene(fake, by_path("/srv/*"), min_age_s=5.0)
    fake.add(70, exe="/srv/a", start_ticks=int(scene.now_s * 100) - 100)
    scene.feed((EXEC, 70, {"start_boot_ns": 0}))
    assert scene.kernel.pids == set()
    assert "younger" in scene.reason(70)
    scene.later(5.1)
    assert scene.kernel.pids == {70}


def test_a_filter_that_refuses_is_counted_and_said(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/a")
    fake.add(71, exe="/srv/b")
    scene = Scene(fake, by_path("/nothing"))
    scene.kernel.refuse.add(70)
    scene.watcher = Watcher(
        fake.open(), by_path("/srv/*"), scene.identities, scene.kernel, Host("box"), own_pid=9
    )  # fmt: skip
    scene.watcher.start()
    assert scene.kernel.pids == {71}
    assert scene.watcher.counters.filter_errors == 1
    assert "refused" in scene.reason(70)
    assert not scene.watcher.decisions[70].watched


@pytest.mark.parametrize(
    ("exe", "args", "maps", "trusted"),
    [
        (PYTHON, ["python3", "web.py"], b"", True),
        (PYTHON, ["python3", "-m", "uvicorn", "web:app"], b"", False),
        (PYTHON, ["python3", "web.py"], b"7f00-7f01 r-xp 0 08:01 1 /x/_asyncio.cpython-311-x86_64.so\n", False),
        (PYTHON, ["gunicorn: worker [a:app]"], b"7f00-7f01 r-xp 0 08:01 1 /x/_asyncio.cpython-311-x86_64.so\n", True),
        (NODE, ["node", "web.js"], b"", False),
        ("/usr/bin/ruby3.1", ["puma 5.6 [store]"], b"", True),
        ("/usr/lib/jvm/java-17-openjdk/bin/java", ["java", "A"], b"", True),
        ("/usr/lib/jvm/java-21-openjdk/bin/java", ["java", "A"], b"", False),
        ("/opt/java/bin/java", ["java", "A"], b"", False),
        ("/usr/sbin/nginx", ["nginx"], b"", True),
    ],
)
def test_the_kernel_is_told_what_a_thread_is_worth(
    fake: FakeProc, exe: str, args: list[str], maps: bytes, trusted: bool
) -> None:
    fake.add(70, exe=exe, args=list(args), maps=maps)
    scene = Scene(fake, selection_of("target_pids: 70"))
    assert scene.kernel.trusted == {70: trusted}


def test_an_event_loop_that_is_loaded_later_is_noticed(fake: FakeProc) -> None:
    directory = fake.add(70, exe=PYTHON, args=["python3", "web.py"])
    scene = Scene(fake, selection_of("target_pids: 70"))
    assert scene.kernel.trusted[70]
    (directory / "maps").write_bytes(b"7f00-7f01 r-xp 0 08:01 1 /x/uvloop/loop.cpython-311.so\n7f00- /uvloop.so\n")
    scene.later(2.1)
    assert not scene.kernel.trusted[70]


def test_pools_of_php_fpm_are_services_of_one_instance(fake: FakeProc) -> None:
    fpm = "/usr/sbin/php-fpm8.2"
    fake.add(70, exe=fpm, args=["php-fpm: master process (/etc/php.conf)"], image=(1, 2))
    fake.add(71, exe=fpm, args=["php-fpm: pool blog"], image=(1, 2), parent=70)
    fake.add(72, exe=fpm, args=["php-fpm: pool shop"], image=(1, 2), parent=70)
    fake.add(73, exe=fpm, args=["php-fpm: pool shop"], image=(1, 2), parent=70)
    scene = Scene(fake, by_path("*php-fpm*"))
    assert [scene.service(pid) for pid in (70, 71, 72, 73)] == ["php-fpm", "blog", "shop", "shop"]
    assert {scene.instance(pid) for pid in (70, 71, 72, 73)} == {"box:70"}
    assert len(scene.identities.services) == 3
    fake.add(74, exe=fpm, args=["php-fpm: pool blog"], image=(1, 2), parent=70)
    scene.feed((FORK, 74, {"parent_tgid": 70, "watched": 1}))
    assert scene.service(74) == "php-fpm"
    scene.later(2.1)
    assert scene.service(74) == "blog"


def test_stopping_leaves_nothing_in_the_filter(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/a")
    scene = Scene(fake, by_path("/srv/*"))
    scene.watcher.stop()
    assert scene.kernel.pids == set()


def test_the_resource_of_a_worker_is_that_of_its_instance(fake: FakeProc) -> None:
    fake.add(70, exe="/srv/shop", image=(1, 2))
    fake.add(71, exe="/srv/shop", image=(1, 2), parent=70)
    scene = Scene(fake, by_path("/srv/*"))
    entry = scene.identities.processes[scene.identities.by_pid[71]]
    assert dict(scene.identities.services[entry.service_id].resource)[semconv.PROCESS_PID] == 70


def _events() -> st.SearchStrategy[list[tuple[int, int, dict[str, int]]]]:
    pids = st.integers(60, 66)
    fields = st.fixed_dictionaries(
        {"parent_tgid": pids, "watched": st.integers(0, 1), "port": st.sampled_from([0, 80, 8080])}
    )
    return st.lists(st.tuples(st.sampled_from([FORK, EXEC, EXIT, LISTEN, 77]), pids, fields), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(60, 66), st.sampled_from(["/srv/a", "/srv/b", "/bin/x", PYTHON]),
                      st.integers(60, 66)),
            st.tuples(st.just("remove"), st.integers(60, 66)),
            st.tuples(st.just("events"), _events()),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_after_a_full_rescan_the_filter_is_right_whatever_the_records_said(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    fake = FakeProc(tmp_path_factory.mktemp("proc"))
    scene = Scene(fake, by_path("/srv/*"))
    alive: dict[int, str] = {}
    for number, (kind, *rest) in enumerate(steps):
        if kind == "add":
            pid, exe, parent = rest
            fake.add(pid, exe=exe, parent=parent, start_ticks=1000 + number)
            alive[pid] = exe
        elif kind == "remove":
            if rest[0] in alive:
                fake.remove(rest[0])
                del alive[rest[0]]
        else:
            scene.feed(*rest[0])
    scene.watcher.rescan(full=True)
    expected = {pid for pid, exe in alive.items() if exe.startswith("/srv/")}
    assert {known.pid for known in scene.watcher.watched()} == expected
    assert scene.kernel.pids == expected
    assert set(scene.watcher.decisions) == set(alive)
    for pid in expected:
        entry = scene.identities.processes[scene.identities.by_pid[pid]]
        assert not entry.ended
        assert entry.service_id in scene.identities.services


def test_an_application_host_gets_its_language_once_the_runtime_is_loaded(fake: FakeProc) -> None:
    directory = fake.add(70, exe="/srv/Shop.Api")
    scene = Scene(fake, by_path("/srv/*"))
    assert scene.identities.services[1].language == "generic"
    (directory / "maps").write_bytes(b"7f00-7f01 r-xp 0 08:01 1 /usr/share/dotnet/libcoreclr.so\n")
    scene.later(2.1)
    entry = scene.identities.processes[scene.identities.by_pid[70]]
    assert entry.language == "dotnet"
    assert scene.identities.services[entry.service_id].language == "dotnet"
    assert scene.kernel.trusted == {70: False}


def test_a_quiet_rescan_decides_nothing_again(fake: FakeProc) -> None:
    for pid in range(70, 90):
        fake.add(pid, exe="/srv/a" if pid % 2 else "/bin/x")
    scene = Scene(fake, by_path("/srv/*"))
    scene.later(3)
    examined = scene.watcher.counters.examined
    for _ in range(12):
        scene.later(10)
    assert scene.watcher.counters.examined == examined


def test_other_selectors_take_and_let_go_without_touching_what_both_want(fake: FakeProc) -> None:
    for pid, exe in ((100, "/usr/bin/alpha"), (110, "/usr/bin/beta"), (120, "/usr/bin/gamma")):
        fake.add(pid, exe=exe)
    fake.add(111, parent=110, exe="/usr/bin/beta")
    scene = Scene(fake, by_path("/usr/bin/[ab]*a"))
    assert scene.kernel.pids == {100, 110, 111}
    before = scene.instance(110), scene.instance(111)
    scene.watcher.select(by_path("/usr/bin/[bg]*a"))
    assert scene.kernel.pids == {110, 111, 120}
    assert (scene.instance(110), scene.instance(111)) == before
    assert scene.reason(100) == "the path of its executable does not match"
    scene.watcher.select(by_path("*/nothing"))
    assert scene.kernel.pids == set()
    assert not scene.watcher.watched()


def test_without_a_descriptor_nothing_is_let_go(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(100, exe="/usr/bin/alpha")
    scene = Scene(fake, by_path("/usr/bin/*a"))
    before = scene.instance(100)
    fake.add(110, exe="/usr/bin/beta")

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as full:
        full.setattr(os, "open", refuse)
        full.setattr(os, "listdir", refuse)
        scene.feed((EXEC, 110, {}), (EXEC, 100, {"watched": 1}))
        scene.later(20)
        assert scene.kernel.pids == {100}
    scene.later(2)
    assert scene.kernel.pids == {100, 110}
    assert scene.instance(100) == before
    assert scene.watcher.counters.hindered >= 2
