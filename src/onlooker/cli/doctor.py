"""``onlooker doctor``: can the effective configuration work here, with what losses, and what to do about them."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import platform
import resource
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from onlooker import __version__
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
    clock_error_us,
)
from onlooker.cli._local_api import LocalApi, url_of
from onlooker.config import Loaded
from onlooker.config.show import as_yaml
from onlooker.errors import AgentError, ConfigError

_COLOURS = {OK: "green", DEGRADED: "yellow", FAILED: "red", INFO: "dim"}
_PROC, _SYS = Path("/proc"), Path("/sys")
_TOLD_BY_FILES = ("type information", "lockdown")  # `check_kernel` has them


def main(loaded: Loaded, pids: Sequence[int], as_json: bool, bundle: str | None, out: TextIO | None = None) -> int:
    """Examine, print, and say by the exit code whether the configuration can work.

    Args:
        loaded: The effective configuration.
        pids: Processes to look at more closely.
        as_json: Whether to print JSON.
        bundle: A file for a support archive, or None.
        out: Where to print; None for standard output.

    Returns:
        0 if it can work, with or without losses; 3 if it cannot.
    """
    out = sys.stdout if out is None else out
    checks = examine(loaded, pids)
    can_work = not any(check.state == FAILED for check in checks)
    if as_json:
        out.write(as_json_text(checks, can_work) + "\n")
    else:
        _print(checks, can_work, out)
    if bundle:
        _write_bundle(Path(bundle), loaded, checks, can_work)
        print(f"onlooker: wrote {bundle}", file=sys.stderr)
    return 0 if can_work else 3


def examine(loaded: Loaded, pids: Sequence[int]) -> list[Check]:
    """Every check, in the order of the report."""
    config = loaded.config
    uname = platform.uname()
    checks = check_kernel(_SYS, uname.release, uname.machine)
    checks += _features()
    checks.append(_sockmap(loaded))
    checks += check_privileges(config, _PROC)
    checks += check_host(_PROC, resource.getrlimit(resource.RLIMIT_MEMLOCK))
    checks += check_clock(_PROC, _SYS, clock_error_us())
    checks += check_outputs(config)
    if loaded.selection.is_empty:
        advice = "see onlooker run without flags for candidates"
        checks.append(Check("configuration", "selection", INFO, "nothing selects a process", advice))
    checks += [Check("configuration", note.place, INFO, note.message) for note in loaded.notes]
    for pid in pids:
        checks += _process(pid, loaded)
    return checks


def _features() -> list[Check]:
    """What the kernel can do, by trying."""
    try:
        features = importlib.import_module("onlooker.kernel.features")
    except ModuleNotFoundError as err:
        return [Check("kernel", "features", DEGRADED, f"this build cannot try them: {err}")]
    try:
        found = features.probe()
    except AgentError as err:
        return [Check("kernel", "features", FAILED, str(err), "nothing can be captured")]
    return [
        Check(
            "kernel",
            feature.name,
            OK if feature.available else FAILED if feature.required else DEGRADED if feature.consequence else INFO,
            feature.detail,
            feature.consequence,
        )
        for feature in found
        if feature.name not in _TOLD_BY_FILES
    ]


def _process(pid: int, loaded: Loaded) -> list[Check]:
    """Would its requests be seen, and if not, why."""
    try:
        checks: list[Check] = importlib.import_module("onlooker.cli._process").check_process(pid, loaded)
    except ModuleNotFoundError as err:
        return [Check(f"process {pid}", "process", DEGRADED, f"this build cannot tell: {err}")]
    return checks


def _sockmap(loaded: Loaded) -> Check:
    """Whether sockets may be put into a sockmap here: an experiment on a private pair."""
    told, detail = importlib.import_module("onlooker.kernel.sockmap").readable_in_sockmap()
    wanted = loaded.config.ebpf.context_propagation != "disabled"
    if told:
        return Check("kernel", "sockets in a sockmap", OK, detail)
    advice = (
        "onlooker puts none into one; other agents that do make servers hang on this kernel" if told is False else ""
    )
    return Check("kernel", "sockets in a sockmap", DEGRADED if wanted and told is False else INFO, detail, advice)


def as_json_text(checks: Sequence[Check], can_work: bool) -> str:
    """The report as JSON."""
    return json.dumps({"version": __version__, "can_work": can_work, "checks": [asdict(c) for c in checks]}, indent=2)


def _clean(text: str) -> str:
    """Paths and names come from other programs: nothing of them may steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _verdict(checks: Sequence[Check], can_work: bool) -> str:
    lost = sum(check.state == DEGRADED for check in checks)
    if not can_work:
        return "This configuration cannot work here; see what failed."
    with_losses = f", with {lost} restriction{'' if lost == 1 else 's'}" if lost else ""
    return f"This configuration can work here{with_losses}."


def _print(checks: Sequence[Check], can_work: bool, out: TextIO) -> None:
    if not out.isatty():
        for check in checks:
            advice = f" -> {_clean(check.advice)}" if check.advice else ""
            out.write(f"{check.state:<8} {check.group}: {_clean(check.name)}: {_clean(check.detail)}{advice}\n")
        out.write(_verdict(checks, can_work) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "WHAT", "FOUND", "SO"):
        table.add_column(column, overflow="fold")
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row("", Text(group, style="bold"), "", "")
        mark = Text(check.state, style=_COLOURS[check.state])
        table.add_row(mark, Text(_clean(check.name)), Text(_clean(check.detail)), Text(_clean(check.advice)))
    console = Console(file=out)
    console.print(table)
    console.print(Text(_verdict(checks, can_work), style="bold"))


def _write_bundle(path: Path, loaded: Loaded, checks: Sequence[Check], can_work: bool) -> None:
    """Write a support archive: this report, the configuration without secrets, versions, a running onlooker's metrics.

    Of its metrics only those about itself: the others have names and routes of services in them.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("doctor.json", as_json_text(checks, can_work))
        archive.writestr("configuration.yml", as_yaml(loaded, everything=True))
        archive.writestr("notes.txt", "".join(f"{note}\n" for note in loaded.notes))
        archive.writestr("system.json", json.dumps(_system(), indent=2))
        archive.writestr("metrics.txt", _running_metrics(loaded))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
    except OSError as err:
        raise ConfigError(f"cannot write the archive: {err.strerror}", place=f"--bundle {path}") from err


def _running_metrics(loaded: Loaded) -> str:
    web = loaded.config.web
    if not web.port:
        return "there is no page to ask\n"
    try:
        found = LocalApi(url_of(web), web.token, timeout_s=2.0).text("/metrics")
    except AgentError as err:
        return f"{err}\n"
    return "".join(f"{line}\n" for line in found.splitlines() if line.startswith("onlooker_"))


def _system() -> dict[str, str]:
    release = {}
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
    uname = platform.uname()
    return {
        "onlooker": __version__,
        "python": platform.python_version(),
        "system": release.get("PRETTY_NAME", ""),
        "kernel": uname.release,
        "kernel_build": uname.version,
        "machine": uname.machine,
        "cpus": str(os.cpu_count()),
    }
