"""What can be said of the BPF objects without a kernel: they build for arm64, and 5.10 could take the old one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both objects, built for arm64."""
    out = tmp_path_factory.mktemp("arm64")
    objects = out / "new.o", out / "old.o"
    made = subprocess.run(
        ["make", "bpf", "BPF_ARCH=arm64", f"BPF_OUT={out}/parts", f"BPF_OBJECT={objects[0]}",
         f"BPF_OLD_OBJECT={objects[1]}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    return objects


def types(file: Path) -> dict[int, dict[str, object]]:
    """The types of an object, by id."""
    environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"}
    text = subprocess.run(
        ["bpftool", "-j", "btf", "dump", "file", str(file)], env=environment, capture_output=True, check=True
    ).stdout
    return {entry["id"]: entry for entry in json.loads(text)["types"]}


def global_functions(file: Path) -> dict[str, list[str]]:
    """Global functions with the kinds of their arguments; programs left out, whose one argument is a context."""
    known = types(file)
    found = {}
    for entry in known.values():
        if entry["kind"] == "FUNC" and entry["linkage"] == "global":
            parameters = known[entry["type_id"]]["params"]  # type: ignore[index]
            found[entry["name"]] = [kind(known, parameter["type_id"]) for parameter in parameters]  # type: ignore[index]
    return {name: kinds for name, kinds in found.items() if kinds != ["context"]}  # type: ignore[misc]


def kind(known: dict[int, dict[str, object]], type_id: int) -> str:
    """What an argument is: a number, a program's context, or a pointer."""
    entry = known[type_id]
    while entry["kind"] in ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT"):
        entry = known[entry["type_id"]]  # type: ignore[index]
    if entry["kind"] != "PTR":
        return "number"
    target = known.get(entry["type_id"], {"kind": "VOID", "name": ""})  # type: ignore[call-overload]
    is_context = target["kind"] == "VOID" or target["name"] in (
        "pt_regs",
        "long long unsigned int",
        "unsigned long long",
    )
    return "context" if is_context else "pointer"


def test_both_objects_build_for_arm64(arm64: tuple[Path, Path]) -> None:
    assert all("on_bytes" not in global_functions(file) for file in arm64)
    assert "http1_step" in global_functions(arm64[0])


def test_global_functions_of_the_old_object_take_numbers_only(arm64: tuple[Path, Path]) -> None:
    """Before 5.12 a global function takes no pointers; `lib/subprogram.h` is how to write one."""
    found = global_functions(arm64[1])
    assert "http1_step_of" in found
    assert {name: kinds for name, kinds in found.items() if "pointer" in kinds} == {}


def test_the_check_above_would_find_a_pointer(arm64: tuple[Path, Path]) -> None:
    assert "pointer" in global_functions(arm64[0])["http1_step"]
