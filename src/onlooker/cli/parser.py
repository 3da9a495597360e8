"""The flags of every command.  The reference page and the shell completion are made from this parser."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from onlooker import __version__

EXIT_CODES = """exit codes: 0 done, 1 something failed while running, 2 wrong configuration or flags,
3 the kernel or missing privileges forbid it"""

# Flag -> key of the configuration that it sets.
SELECTION_FLAGS: Mapping[str, str] = {
    "--open-port": "open_port",
    "--exe-path": "auto_target_exe",
    "--pid": "target_pids",
    "--language": "auto_target_language",
    "--cmd-args": "auto_target_cmd_args",
    "--all": "discovery.all",
}
OUTPUT_FLAGS: Mapping[str, str] = {
    "--no-store": "store.enabled",
    "--web-port": "web.port",
    "--print": "trace_printer",
    "--log-level": "log_level",
    "--log-format": "log_format",
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="onlooker",
        description="Traces, metrics and a service graph of running services by eBPF, with no change to them.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onlooker {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common, selection, output = _common(), _selection(), _output()

    run = commands.add_parser(
        "run", parents=[common, selection, output], help="watch services",
        usage="onlooker run [options] [-- CMD ...]",
        description="Watch services until Ctrl-C. With -- CMD, start the command and watch it and its children.",
        epilog="Several selecting flags must hold together; with none, and none in the configuration, the candidates "
        "are listed.",
    )  # fmt: skip
    run.set_defaults(words=[])

    processes = commands.add_parser(
        "processes", parents=[common, selection], help="what would be watched, what not, and why",
        description="Show what would be watched, what not, and why. Nothing is attached.",
    )  # fmt: skip
    _json(processes)

    doctor = commands.add_parser(
        "doctor", parents=[common, selection], help="what this kernel and these privileges allow",
        description="Try what the kernel can do, compare privileges with what the configuration needs, and say what is "
        "degraded and what to do. The exit code is 3 if the configuration cannot work here.",
    )  # fmt: skip
    _json(doctor)
    doctor.add_argument("--bundle", metavar="FILE", help="write a support archive (zip; no payloads, no secrets)")

    local = _local_api()
    commands.add_parser(
        "top", parents=[common, local], help="live table of services in the terminal",
        description="Show the services of a running onlooker in the terminal, live.",
    )  # fmt: skip
    traces = commands.add_parser(
        "traces", parents=[common, local], help="requests of a running onlooker",
        description="List requests that a running onlooker has seen.",
    )  # fmt: skip
    traces.add_argument("--service", metavar="S", help="only this service")
    traces.add_argument("--slow", metavar="DURATION", help="only requests that took at least this long, such as 200ms")
    traces.add_argument("--errors", action="store_true", help="only failed requests")
    traces.add_argument("--follow", action="store_true", help="go on with new requests until Ctrl-C")
    _json(traces)

    config = commands.add_parser(
        "config", help="check, show or describe the configuration",
        description="Check, show or describe the configuration.",
    )  # fmt: skip
    actions = config.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check", parents=[common, selection], help="exit code 2 and every fault, if there is one",
        description="Read the configuration and tell what is wrong with it.",
    )  # fmt: skip
    check.add_argument("--strict", action="store_true", help="fail on notes too, such as keys that change nothing")
    show = actions.add_parser(
        "show", parents=[common, selection, output], help="effective values and where each comes from",
        description="Show the effective configuration, with the source of each value. Secrets are hidden.",
    )  # fmt: skip
    show.add_argument("--defaults", action="store_true", help="show the keys that stand at their defaults too")
    _json(show)
    actions.add_parser("schema", help="JSON schema of the configuration file", description="Print the JSON schema.")

    completion = commands.add_parser(
        "completion", help="completion script for a shell", description="Print a completion script for a shell.",
    )  # fmt: skip
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell")
    return parser


def _common() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", metavar="FILE", help="configuration file (YAML); else $ONLOOKER_CONFIG_PATH")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and whole verifier logs")
    return parser


def _selection() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("selecting processes")
    group.add_argument(
        "--open-port", metavar="P", action="append", help="listening on these ports: 80, 80,443, 8000-8999"
    )
    group.add_argument(
        "--exe-path", metavar="GLOB", action="append", help="by path of the executable, such as '*/nginx'"
    )
    group.add_argument("--pid", metavar="N", action="append", help="these processes and nothing else")
    group.add_argument(
        "--language", metavar="GLOB", action="append", help="by language, such as 'python' or '{go,java}'"
    )
    group.add_argument("--cmd-args", metavar="GLOB", action="append", help="by command line, such as '*gunicorn*shop*'")
    group.add_argument("--all", action="store_const", const=["true"], help="every process that is not excluded")
    return parser


def _output() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("output")
    group.add_argument("--no-store", action="store_const", const=["false"], help="keep nothing on disk")
    group.add_argument("--web-port", metavar="P", help="port of the page; 0 for no page")
    group.add_argument("--print", metavar="HOW", choices=("text", "json", "json_indent", "counter"),
                       help="print every request: text, json, json_indent or counter")  # fmt: skip
    group.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARN or ERROR")
    group.add_argument("--log-format", metavar="F", choices=("text", "json"), help="text or json")
    return parser


def _local_api() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--url", metavar="URL", help="address of the running onlooker; else that of the configuration")
    parser.add_argument("--token", metavar="T", help="its bearer token; else that of the configuration")
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON")


def flags_of(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Key path to flag and text, of the flags that were given.

    A flag that is repeated means either of its values: numbers are joined by commas, globs become alternatives.
    """
    found: dict[str, tuple[str, str]] = {}
    for flag, path in {**SELECTION_FLAGS, **OUTPUT_FLAGS}.items():
        given = getattr(args, flag.removeprefix("--").replace("-", "_"), None)
        if given is None:
            continue
        values = given if isinstance(given, list) else [given]
        either = len(values) > 1 and path.startswith("auto_target")
        text = "{" + ",".join(values) + "}" if either else ",".join(values)
        found[path] = (flag, text)
    return found
