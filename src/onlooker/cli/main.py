"""From the command line to the part that does the work, and from errors to one clean line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from onlooker.cli.parser import build_parser, flags_of
from onlooker.errors import AgentError, UnsupportedKernelError

if TYPE_CHECKING:
    from onlooker.config import Loaded


def main(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``onlooker``.
        environ: The environment; None for this process's.

    Returns:
        The exit code.
    """
    environ = os.environ if environ is None else environ
    before, after, command_given = _split(argv)
    parser = build_parser()
    try:
        args = parser.parse_args(before)
        if command_given:
            if args.command != "run" or not after:
                parser.error("a command after -- goes with run, and must not be empty")
            args.words = after
    except SystemExit as stop:  # argparse has printed help, a version or what is wrong
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _COMMANDS[args.command](args, environ)
    except AgentError as err:
        if getattr(args, "verbose", False):
            import traceback

            traceback.print_exc()
        return _explain(err)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], bool]:
    words = list(argv)
    if "--" not in words:
        return words, [], False
    at = words.index("--")
    return words[:at], words[at + 1 :], True


def _explain(err: AgentError) -> int:
    print(f"onlooker: {err}", file=sys.stderr)
    for note in getattr(err, "__notes__", ()):
        print(f"onlooker: {note}", file=sys.stderr)
    return err.exit_code


def _part(name: str) -> ModuleType:
    """Import the part that does the work; a build without it is told plainly."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is None or not name.startswith(err.name):
            raise
        raise AgentError(f"this build of onlooker has no {name}") from err


def load(args: argparse.Namespace, environ: Mapping[str, str]) -> Loaded:
    """The configuration that the flags and the environment ask for."""
    from onlooker.config import load as load_config

    return load_config(args.config, environ=environ, flags=flags_of(args), euid=os.geteuid())


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from onlooker import light

    light.settle_allocator()
    loaded = load(args, environ)
    from onlooker.cli.log_setup import print_configuration, set_up_logging

    set_up_logging(loaded.config.log_level, loaded.config.log_format, sys.stderr)
    if loaded.selection.is_empty and not args.words:
        return _without_selector()
    print_configuration(loaded, sys.stderr)
    if loaded.config.enforce_sys_caps:
        _require_privileges(loaded)
    light.import_libraries()
    code: int = _part("onlooker.agent").run(loaded, command=args.words, load_again=lambda: load(args, os.environ))
    return code


def _require_privileges(loaded: Loaded) -> None:
    from pathlib import Path

    from onlooker.cli._host import OK, check_privileges

    missing = [check for check in check_privileges(loaded.config, Path("/proc")) if check.state != OK]
    if missing:
        told = "; ".join(f"{check.name} ({check.detail})" for check in missing)
        raise UnsupportedKernelError(f"enforce_sys_caps is set, and privileges are missing: {told}")


def _without_selector() -> int:
    """Explain what is missing, with what there is on this host."""
    report = _part("onlooker.discover.report")
    found = report.candidates(own_pid=os.getpid())
    out = sys.stderr
    print("onlooker: nothing selects a process to watch.", file=out)
    if found:
        print("\nThese listen on TCP ports:\n", file=out)
        width = max(len(one.flag) for one in found[:30])
        for one in found[:30]:
            name = report.printable(one.name, 60)
            print(f"  onlooker run {one.flag:<{width}}   # {name} ({one.language}, pid {one.pid})", file=out)
        if len(found) > 30:
            print(f"  ... and {len(found) - 30} more: onlooker processes --all", file=out)
    elif os.geteuid() != 0:
        print("\nNo listening process can be seen; without root, those of other users stay hidden.", file=out)
    print(
        "\nOther ways: --exe-path '*/nginx', --pid N, --language python, --cmd-args '*shop*', --all for everything,"
        "\n-- CMD to start a command and watch it, or discovery.instrument in a configuration file.",
        file=out,
    )
    return 2


def _processes(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    loaded = load(args, environ)
    report = _part("onlooker.discover.report")
    prober, catalog = _part("onlooker.attach.prober"), _part("onlooker.attach.tls").TlsCatalog()
    code: int = report.main(loaded, args.as_json, tls_of=lambda pid: prober.sentences(pid, catalog))
    return code


def _doctor(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from onlooker.cli import doctor

    # --pid asks about processes here; it selects them as it does for run.
    loaded = load(args, environ)
    pids = [low for low, high in loaded.config.target_pids for low in range(low, min(high, low + 15) + 1)]
    return doctor.main(loaded, pids, args.as_json, args.bundle)


def _local(name: str) -> Callable[[argparse.Namespace, Mapping[str, str]], int]:
    def command(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
        if not args.url or not args.token:
            from onlooker.cli._local_api import url_of

            web = load(args, environ).config.web
            args.token = args.token or (web.token if not args.url else "")
            args.url = args.url or url_of(web)
        code: int = _part(name).main(args)
        return code

    return command


def _config(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from onlooker.cli import config_command

    return config_command.main(args, environ)


def _completion(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from onlooker.cli.completion import script

    sys.stdout.write(script(args.shell, build_parser()))
    return 0


_COMMANDS: Mapping[str, Callable[[argparse.Namespace, Mapping[str, str]], int]] = {
    "run": _run,
    "processes": _processes,
    "doctor": _doctor,
    "top": _local("onlooker.cli.top"),
    "traces": _local("onlooker.cli.traces"),
    "config": _config,
    "completion": _completion,
}
