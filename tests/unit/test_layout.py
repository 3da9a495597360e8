"""The seams: a stage imports what is shared and its own modules, never a neighbour.  Only the wiring knows them all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "onlooker"
STAGES = frozenset(
    ("discover", "attach", "capture", "assemble", "enrich", "aggregate", "sample", "export", "store", "protocols")
)
SHARED = frozenset(
    ("batches", "errors", "semconv", "kernel", "protocols", "columns", "config", "randomness", "snapshot")
)
WIRING = frozenset(
    ("agent", "settings", "observe", "web", "cli", "light", "overload", "plaintext", "confinement", "__main__")
)
FOUNDATION = frozenset(("batches", "errors", "semconv", "kernel", "columns", "config", "randomness", "snapshot"))
"""What stages stand on must not stand on a stage."""

EXCEPTIONS = {
    # the shape of a metric snapshot: what aggregate makes is what the exporters read
    ("aggregate", "onlooker.snapshot"),
}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of onlooker that a file imports, in functions and for type checkers too."""
    package = ["onlooker", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "onlooker":
                for alias in node.names:
                    yield f"onlooker.{alias.name}", node.lineno
            else:
                yield module, node.lineno


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def arrows() -> Iterator[tuple[str, str, str]]:
    """From part, to module, where."""
    for path in sorted(SOURCE.rglob("*.py")):
        for module, line in imports(path):
            if module.startswith("onlooker."):
                yield part_of(path), module, f"{path.relative_to(SOURCE.parent)}:{line}"


def allowed(part: str, module: str) -> bool:
    target = module.split(".")[1]
    if target == part or target.startswith("__") or part in WIRING:
        return True
    if part in FOUNDATION:
        return target in FOUNDATION
    return part in STAGES and target in SHARED


def test_no_arrow_points_at_a_neighbour() -> None:
    wrong = [f"{where}: {part} -> {module}" for part, module, where in arrows() if not allowed(part, module)]
    assert not wrong, "wrong arrows:\n" + "\n".join(wrong)


def test_every_part_of_the_package_is_a_stage_shared_or_wiring() -> None:
    parts = {part_of(path) for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert parts <= STAGES | SHARED | WIRING


@pytest.mark.parametrize(
    ("part", "module", "is_allowed"),
    [
        ("enrich", "onlooker.aggregate.store", False),
        ("enrich", "onlooker.agent", False),
        ("kernel", "onlooker.capture.capture", False),
        ("config", "onlooker.cli.parser", False),
        ("enrich", "onlooker.columns", True),
        ("agent", "onlooker.enrich.routes", True),
    ],
)
def test_the_rule_itself(part: str, module: str, is_allowed: bool) -> None:
    assert allowed(part, module) is is_allowed


def test_importing_starts_nothing_and_needs_no_kernel() -> None:
    modules = [
        "onlooker." + ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "__main__.py" and path != SOURCE / "__init__.py"
    ]
    code = (
        "import ctypes, importlib, os, sys, threading\n"
        "loaded = []\n"
        "forbidden = ('socket.connect', 'subprocess.Popen', 'os.fork')\n"
        "sys.addaudithook(lambda event, args: event in forbidden and loaded.append(event))\n"
        f"for module in {modules!r}: importlib.import_module(module)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not loaded, loaded\n"
        "assert 'libbpf' not in open('/proc/self/maps').read(), 'libbpf is loaded by an import'\n"
    )
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
