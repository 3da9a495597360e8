import argparse
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import onlooker
from onlooker.cli.main import main
from onlooker.cli.parser import OUTPUT_FLAGS, SELECTION_FLAGS, build_parser, flags_of
from onlooker.config import Loaded
from onlooker.config.keys import walk
from onlooker.config.model import Config
from onlooker.errors import UnsupportedKernelError, VerifierError


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Loaded, list[str]]]:
    """Stands in for the agent, which needs a kernel: remembers what it was started with."""
    started: list[tuple[Loaded, list[str]]] = []
    module = types.ModuleType("onlooker.agent")

    def run(loaded: Loaded, *, command: list[str], load_again: Callable[[], Loaded]) -> int:
        started.append((loaded, command))
        assert load_again().config == loaded.config
        return 0

    module.run = run  # type: ignore[attr-defined]  # a module made for the test
    monkeypatch.setitem(sys.modules, "onlooker.agent", module)
    return started


def test_every_flag_sets_a_key_that_exists() -> None:
    paths = {key.path for key in walk(Config)}
    assert set(SELECTION_FLAGS.values()) | set(OUTPUT_FLAGS.values()) <= paths


def test_flags_reach_the_agent(agent: list[tuple[Loaded, list[str]]], tmp_path: Path) -> None:
    file = tmp_path / "c.yml"
    file.write_text("web: {port: 1}\nopen_port: 1\n")
    words = [
        "run",
        "--config",
        str(file),
        "--open-port",
        "80",
        "--open-port",
        "90-91",
        "--exe-path",
        "*a",
        "--exe-path",
        "*b",
    ]
    words += [
        "--language",
        "go",
        "--cmd-args",
        "x*",
        "--no-store",
        "--web-port",
        "0",
        "--print",
        "json",
        "--log-level",
        "warn",
    ]
    assert main(words, {}) == 0
    ((loaded, command),) = agent
    config = loaded.config
    assert command == []
    assert config.open_port == ((80, 80), (90, 91))
    assert (config.auto_target_exe, config.auto_target_language, config.auto_target_cmd_args) == ("{*a,*b}", "go", "x*")
    assert (config.store.enabled, config.web.port, config.trace_printer, config.log_level) == (False, 0, "json", "WARN")
    assert str(loaded.origins["web.port"]) == "--web-port"
    (selector,) = loaded.selection.selectors
    assert selector.source == "--open-port and --exe-path and --language and --cmd-args"


def test_pids_and_all(agent: list[tuple[Loaded, list[str]]]) -> None:
    assert main(["run", "--pid", "7", "--pid", "9"], {}) == 0
    assert main(["run", "--all"], {}) == 0
    pids, everything = (loaded.selection for loaded, _ in agent)
    assert [pid for pid in range(20) if pids.selectors[0].matches_pid(pid)] == [7, 9]
    assert everything.selectors[0].matches_exe("/any/thing")


def test_a_command_is_handed_over_as_it_is(agent: list[tuple[Loaded, list[str]]]) -> None:
    assert main(["run", "--web-port", "0", "--", "python", "app.py", "--all", "--", "x"], {}) == 0
    assert agent[0][1] == ["python", "app.py", "--all", "--", "x"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--"],
        ["processes", "--", "ls"],
        [],
        ["fly"],
        ["run", "--nope"],
        ["config"],
        ["run", "--print", "loudly"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_command_lines_are_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words, {}) == 2
    assert "usage: onlooker" in capsys.readouterr().err


def test_without_a_selector_the_candidates_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        # The test's own process listens; the command runs in another one, as candidates leave out the asker.
        done = subprocess.run(
            [sys.executable, "-m", "onlooker", "run"], env=_environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert "nothing selects a process to watch" in done.stderr
        # all the ports of one process stand together
        assert re.search(rf"^  onlooker run --open-port (\d+,)*{port}[ ,]", done.stderr, re.MULTILINE), done.stderr
        assert "Traceback" not in done.stderr


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(onlooker.__file__).parent.parent)}


def test_the_version_loads_nothing_heavy() -> None:
    code = (
        "import sys; from onlooker.cli.main import main; main(['--version']);"
        "print([m for m in ('numpy', 'yaml', 'msgspec', 'rich', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == f"onlooker {onlooker.__version__}\n[]\n"


def test_checking_a_configuration_loads_no_numpy() -> None:
    code = (
        "import sys; from onlooker.cli.main import main; main(['config', 'check'], {}); print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("False\n")


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, noted, bad = tmp_path / "good.yml", tmp_path / "noted.yml", tmp_path / "bad.yml"
    good.write_text("open_port: 80\n")
    noted.write_text("network: {sampling: 2}\n")
    bad.write_text("opne_port: 80\nlog_level: loud\n")
    assert main(["config", "check", "--config", str(good)], {}) == 0
    assert capsys.readouterr().out == f"ok: {good}; 1 entry selects processes\n"
    assert main(["config", "check", "--config", str(noted)], {}) == 0
    assert main(["config", "check", "--strict", "--config", str(noted)], {}) == 2
    capsys.readouterr()
    assert main(["config", "check", "--config", str(bad)], {}) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"onlooker: {bad}:1: opne_port: no such key; did you mean open_port or profile_port?"
    assert second.startswith(f"onlooker: {bad}:2: log_level: 'loud' is not one of")


def test_config_show_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"BEYLA_OPEN_PORT": "80", "ONLOOKER_WEB_TOKEN": "hush"}
    assert main(["config", "show", "--log-level", "error"], environ) == 0
    shown = capsys.readouterr().out
    assert "open_port: '80'  # BEYLA_OPEN_PORT\n" in shown
    assert "log_level: ERROR  # --log-level\n" in shown
    assert "hush" not in shown
    assert main(["config", "show", "--json", "--defaults"], environ) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["open_port"] == {"value": "80", "source": "BEYLA_OPEN_PORT"}
    assert values["ebpf.batch_length"] == {"value": 100, "source": "default"}
    assert main(["config", "schema"], {}) == 0
    assert json.loads(capsys.readouterr().out)["additionalProperties"] is False


def test_errors_are_one_line_unless_verbose(
    agent: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(loaded: Loaded, *, command: list[str], load_again: Callable[[], Loaded]) -> int:
        raise UnsupportedKernelError("no ring buffers here; use 5.8 or newer")

    monkeypatch.setattr(sys.modules["onlooker.agent"], "run", fail)
    assert main(["run", "--all"], {}) == 3
    assert capsys.readouterr().err == "onlooker: no ring buffers here; use 5.8 or newer\n"
    assert main(["run", "--all", "--verbose"], {}) == 3
    assert "Traceback" in capsys.readouterr().err


def test_verbose_shows_the_whole_verifier_log(
    agent: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(loaded: Loaded, *, command: list[str], load_again: Callable[[], Loaded]) -> int:
        raise VerifierError("on_bytes", "0: r1 = 0\nR2 invalid mem access\nprocessed 2 insns")

    monkeypatch.setattr(sys.modules["onlooker.agent"], "run", fail)
    assert main(["run", "--all"], {}) == 3
    assert "0: r1 = 0" not in capsys.readouterr().err
    assert main(["run", "--all", "--verbose"], {}) == 3
    assert "0: r1 = 0" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(agent: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(loaded: Loaded, *, command: list[str], load_again: Callable[[], Loaded]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["onlooker.agent"], "run", interrupt)
    assert main(["run", "--all"], {}) == 130


def test_a_reader_that_goes_away_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "onlooker", "config", "schema"]
    done = subprocess.run(words, env=_environment(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_privileges_stop_the_start_where_asked_for(
    agent: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The check itself is tested with described hosts in test_cli_doctor.
    monkeypatch.setattr("onlooker.cli._host.held_capabilities", lambda proc: set())
    assert main(["run", "--all"], {"BEYLA_ENFORCE_SYS_CAPS": "true"}) == 3
    assert "CAP_BPF" in capsys.readouterr().err
    assert agent == []
    assert main(["run", "--all"], {}) == 0


@pytest.mark.parametrize(
    ("words", "environ", "url", "token"),
    [
        (["top"], {}, "http://127.0.0.1:9700", ""),
        (["traces"], {"ONLOOKER_WEB_PORT": "81", "ONLOOKER_WEB_TOKEN": "t"}, "http://127.0.0.1:81", "t"),
        (["top"], {"ONLOOKER_WEB_ADDRESS": "::1"}, "http://[::1]:9700", ""),
        (["top"], {"ONLOOKER_WEB_ADDRESS": "0.0.0.0", "ONLOOKER_WEB_ALLOW_PUBLIC": "yes"}, "http://127.0.0.1:9700", ""),
        (["top", "--url", "http://other:1", "--token", "x"], {"ONLOOKER_WEB_TOKEN": "t"}, "http://other:1", "x"),
        (["top", "--url", "http://other:1"], {"ONLOOKER_WEB_TOKEN": "t"}, "http://other:1", ""),
    ],
)
def test_local_views_find_the_running_onlooker(
    words: list[str], environ: dict[str, str], url: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[argparse.Namespace] = []
    for name in ("top", "traces"):
        module = types.ModuleType(f"onlooker.cli.{name}")
        module.main = lambda args: seen.append(args) or 0  # type: ignore[attr-defined]  # a module made for the test
        monkeypatch.setitem(sys.modules, f"onlooker.cli.{name}", module)
    assert main(words, environ) == 0
    assert (seen[0].url, seen[0].token or "") == (url, token)  # a token never goes to an address that was given


def test_one_glob_needs_no_alternatives() -> None:
    args = build_parser().parse_args(["run", "--exe-path", "*a,b"])
    assert flags_of(args) == {"auto_target_exe": ("--exe-path", "*a,b")}
