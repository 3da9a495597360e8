"""The reference pages say what the code has; commands and links in the pages are real."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onlooker import errors
from onlooker.assemble.http1 import Http1
from onlooker.batches import Values
from onlooker.capture._records import LossReason
from onlooker.cli.parser import build_parser
from onlooker.config.keys import walk
from onlooker.config.loader import load_text
from onlooker.config.model import Config
from onlooker.enrich.identify import Identifier
from onlooker.export.exporter import DROP_REASONS

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
PAGES = sorted(
    path
    for folder in (".", "docs", "changes", "demo", "examples", "deploy")
    for path in ((ROOT / folder).glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
)
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|\!\[[^\]]*\]\(([^)\s]+)\)")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(text: str, language: str = "") -> Iterator[str]:
    """Blocks of code in a language; those without one are commands."""
    for found, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found == language:
            yield body


def commands(path: Path) -> Iterator[list[str]]:
    for body in fenced(path.read_text()):
        for line in body.replace("\\\n", " ").splitlines():
            if re.match(r"(\S*/)?(make|onlooker)( |$)", line):
                yield shlex.split(line, comments=True)


def parsers() -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    waiting = [((), build_parser())]
    while waiting:
        path, parser = waiting.pop()
        yield path, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [((*path, name), child) for name, child in action.choices.items()]


FLAGS = {path: {flag for action in parser._actions for flag in action.option_strings} for path, parser in parsers()}


def test_every_command_and_flag_is_on_the_page() -> None:
    page = (REFERENCE / "command-line.md").read_text()
    for path, flags in FLAGS.items():
        assert not path or f"## `onlooker {' '.join(path)}`" in page
        for flag in flags - {"-h", "--help"}:
            assert re.search(rf"`{re.escape(flag)}[ `]", page), (path, flag)


def test_every_key_is_on_the_page() -> None:
    page = (REFERENCE / "configuration.md").read_text()
    missing = [key.path for key in walk(Config) if f"`{key.path}`" not in page]
    assert not missing


def test_every_metric_of_the_agent_itself_is_on_a_page() -> None:
    source = (ROOT / "src/onlooker/observe.py").read_text()
    found = re.findall(r"own\.(counter|gauge)\(\s*\"(\w+)\"", source)
    assert len(found) > 10
    pages = (REFERENCE / "own-metrics.md").read_text() + (REFERENCE / "metrics.md").read_text()
    for kind, name in found:
        assert f"`onlooker_{name}{'_total' if kind == 'counter' else ''}`" in pages


def test_every_reason_of_a_loss_is_on_the_page() -> None:
    page = (REFERENCE / "losses.md").read_text()
    rng = np.random.default_rng(1)
    reasons = {reason.name.removeprefix("LOSS_").lower() for reason in LossReason} - {"reasons"}
    reasons |= {"missed_run", *Http1(Values(), rng=rng).dropped, *DROP_REASONS}
    reasons |= set(Identifier().dropped) - {"no_exports"}  # left out on purpose
    segments = ROOT / "src/onlooker/assemble/segments.py"
    if segments.exists():
        reasons |= set(re.findall(r"dropped\[\"(\w+)\"\]", segments.read_text()))
    assert not {reason for reason in reasons if f"| `{reason}` |" not in page}


ERRORS = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, errors.AgentError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_on_the_page_with_its_exit_code(error: type[errors.AgentError]) -> None:
    assert f"| `{error.__name__}` | {error.exit_code} |" in (REFERENCE / "errors.md").read_text()
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for match in LINK.finditer(re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:|#", target) and not (path.parent / target.partition("#")[0]).exists():
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_commands_in_the_pages_exist(path: Path) -> None:
    for words in commands(path):
        if words[0] == "make":
            for word in words[1:]:
                assert "=" in word or word in TARGETS, words
            arguments = next((word[5:] for word in words if word.startswith("ARGS=")), None)
            if arguments is None:
                continue
            words = ["onlooker", "run", *shlex.split(arguments)]
        words = words[1 : words.index("--")] if "--" in words else words[1:]
        names = tuple(words[: next((i for i, w in enumerate(words) if w.startswith("-")), len(words))])
        command = next((names[:n] for n in range(len(names), -1, -1) if names[:n] in FLAGS), ())
        assert not names or command, words
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in FLAGS[command], words


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yml")), ids=label)
def test_an_example_loads_and_chooses_something(path: Path) -> None:
    loaded = load_text(path.read_text(), name=path.name, environ={}, flags={})
    assert not loaded.selection.is_empty


@pytest.mark.parametrize("path", PAGES, ids=label)
def test_configurations_in_the_pages_load(path: Path) -> None:
    for body in fenced(path.read_text(), "yaml"):
        load_text(body, name=path.name, environ={}, flags={})


def test_every_target_of_the_makefile_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    explained = set(re.findall(r"^([a-z][a-z-]*):.*##", makefile, re.MULTILINE))
    assert explained >= {"setup", "run", "test", "check", "bench", "bench-count", "generate", "golden", "fuzz", "web"}
    declared = set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)).split())
    assert declared == TARGETS
