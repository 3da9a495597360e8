"""Build hook: the wheel carries the BPF objects, so that running needs neither clang nor headers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # the base class is generic in name only
    """Runs ``make bpf`` unless the object of this machine is there and newer than its sources (an sdist's install)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before files are collected."""
        root = Path(self.root)
        subprocess.run(["make", "-s", "-C", str(root), "bpf"], check=True)
        build_data["pure_python"] = True
