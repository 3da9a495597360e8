import importlib.util
import io
import json
import logging
import shutil
import subprocess
import types
from pathlib import Path

import pytest

from onlooker.cli.completion import script
from onlooker.cli.log_setup import print_configuration, set_up_logging
from onlooker.cli.parser import build_parser
from onlooker.config import load_text

ROOT = Path(__file__).resolve().parents[3]


def _generator() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "scripts/gen_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["docs/reference/configuration.md", "docs/reference/command-line.md"])
def test_the_reference_pages_are_what_the_code_says(page: str) -> None:
    text = (ROOT / page).read_text()
    assert _generator().render(page, text) == text, "run scripts/gen_reference.py"


@pytest.fixture
def logs() -> io.StringIO:
    stream = io.StringIO()
    yield stream  # type: ignore[misc]  # a fixture
    logger = logging.getLogger("onlooker")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def test_text_logs_stay_on_their_line(logs: io.StringIO) -> None:
    set_up_logging("INFO", "text", logs)
    logger = logging.getLogger("onlooker.discover")
    logger.debug("unheard")
    logger.warning("process %s", "a\nb\x1b[0m")
    (line,) = logs.getvalue().splitlines()
    assert line.endswith(r"Z WARNING onlooker.discover: process a\nb\x1b[0m")


def test_json_logs_are_objects(logs: io.StringIO) -> None:
    set_up_logging("DEBUG", "json", logs)
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("onlooker").exception("went wrong")
    entry = json.loads(logs.getvalue())
    assert (entry["level"], entry["message"], entry["logger"]) == ("ERROR", "went wrong", "onlooker")
    assert "ValueError: x" in entry["exception"]


def test_setting_up_twice_logs_once(logs: io.StringIO) -> None:
    set_up_logging("INFO", "text", io.StringIO())
    set_up_logging("ERROR", "text", logs)
    logging.getLogger("onlooker").warning("unheard")
    logging.getLogger("onlooker").error("once")
    assert logs.getvalue().count("once") == 1
    assert "unheard" not in logs.getvalue()


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_the_effective_configuration_is_printed_where_asked_for(form: str) -> None:
    loaded = load_text(f"log_config: {form}\nnetwork: {{sampling: 2}}", name="f.yml", environ={}, flags={})
    out = io.StringIO()
    print_configuration(loaded, out)
    if form == "json":
        assert json.loads(out.getvalue())["network.sampling"] == {"value": 2, "source": "f.yml:2"}
    else:
        assert "  sampling: 2  # f.yml:2\n" in out.getvalue()


def test_nothing_is_printed_where_not_asked_for() -> None:
    out = io.StringIO()
    print_configuration(load_text("", name="", environ={}, flags={}), out)
    assert out.getvalue() == ""


def complete(*words: str) -> set[str]:
    """What bash itself offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    line = f"COMP_WORDS=(onlooker {quoted}); COMP_CWORD={len(words)}; _onlooker; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    text = script("bash", build_parser()) + line
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes() -> None:
    assert {"run", "doctor", "config", "completion"} <= complete("")
    assert complete("do") == {"doctor"}
    assert complete("config", "") >= {"check", "show", "schema"}
    assert "--defaults" in complete("config", "show", "--d")
    assert complete("run", "--open") == {"--open-port"}
    assert complete("run", "--print", "json") == {"json", "json_indent"}
    assert complete("completion", "z") == {"zsh"}
    assert "bash" in complete("run", "--", "bas")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_flag_is_in_each_script(shell: str) -> None:
    text = script(shell, build_parser())
    for word in ("processes", "traces", "schema", "open-port", "cmd-args", "bundle", "json_indent"):
        assert word in text
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=text, text=True, timeout=30, check=True)
