"""The kernels that `vmrun` boots: Debian packages, unpacked in a cache; /boot and dpkg's records are left alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernel-lab"
SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY = ("bullseye-security", "bookworm-security", "trixie-security")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def say(*words: object) -> None:
    """A line on standard error."""
    print("vmrun:", *words, file=sys.stderr, flush=True)


def die(text: str) -> NoReturn:
    """End with 125: it is the machine that failed, not the command."""
    say(text)
    sys.exit(125)


def mirrors(sources: str) -> dict[str, str]:
    """Suite to URI, of the text of apt's source lists in both of their formats."""
    pairs = re.findall(r"^deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)", sources, re.M)
    for stanza in re.split(r"\n\s*\n", sources):
        uri, suites = (re.search(rf"^{key}:\s*(.+)", stanza, re.M) for key in ("URIs", "Suites"))
        if uri and suites:
            pairs += [(uri[1].split()[0], suite) for suite in suites[1].split()]
    return {suite: uri for uri, suite in pairs}


def source_lines(known: dict[str, str], codename: str) -> list[str]:
    """This machine's own mirrors, asked for the suites that carry the kernels."""
    if codename not in known:
        die("found no Debian mirror in /etc/apt")
    options = f"[arch=amd64 signed-by={KEYRING}]"
    security = known.get(f"{codename}-security")
    lines = [f"deb {options} {known[codename]} {suite} main" for suite in SUITES]
    return lines + [f"deb {options} {security} {suite} main" for suite in SECURITY if security]


def _own_sources() -> list[str]:
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n\n".join(path.read_text() for path in files if path.suffix in (".list", ".sources") and path.exists())
    codename = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    return source_lines(mirrors(text), codename[1] if codename else "")


def _apt(*words: str, cwd: Path | None = None) -> str:
    environment = {**os.environ, "APT_CONFIG": f"{CACHE}/apt/apt.conf"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        die(f"{' '.join(words)} failed:\n" + re.sub(r"\w+://\S+", "(mirror)", done.stderr)[-1500:])
    return done.stdout


def packages(*, update: bool = False) -> list[str]:
    """The names of the packages to be had; the lists are fetched once, and again with ``update``."""
    base = CACHE / "apt"
    if update or not (base / "ready").exists():
        say("fetching package lists")
        for directory in ("lists/partial", "cache/archives/partial"):
            (base / directory).mkdir(parents=True, exist_ok=True)
        (base / "sources.list").write_text("\n".join(_own_sources()) + "\n")
        (base / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{base}/sources.list"; Dir::Etc::sourceparts "-";\n'
            f'Dir::State::lists "{base}/lists"; Dir::Cache "{base}/cache";\n'
            'APT::Sandbox::User "root"; APT::Architecture "amd64"; APT::Update::Error-Mode "any";\n'
        )
        _apt("apt-get", "-q", "update")
        (base / "ready").touch()
    return _apt("apt-cache", "pkgnames").split()


def available(*, update: bool = False) -> list[str]:
    """The versions of all the kernels to be had."""
    prefix = "linux-image-"
    return [name.removeprefix(prefix) for name in packages(update=update) if name.startswith(prefix)]


def matching(names: Iterable[str], wanted: str, flavour: str) -> list[str]:
    """The kernel versions among ``names`` that are ``wanted`` or go on from it, oldest first."""
    pattern = re.compile(r"(?=\d+\.\d+\.\d)" + re.escape(wanted) + r"(?!(?<=\d)\d)(?!.*-rt-).*?(-cloud)?-amd64")
    found = {name for name in names if (match := pattern.fullmatch(name)) and bool(match[1]) == (flavour == "cloud")}
    return sorted(found, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _unpack(names: list[str], destination: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        place = Path(directory)
        _apt("apt-get", "-q", "download", *names, cwd=place)
        for package in place.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, destination], check=True)


def busybox() -> Path:
    """A static busybox for the first steps inside; fetched once."""
    path = CACHE / "busybox"
    if not path.exists():
        packages()
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            _unpack(["busybox-static"], Path(directory))
            next(Path(directory).glob("**/bin/busybox")).rename(path)
    return path


def get_kernel(wanted: str, flavour: str, *, update: bool) -> tuple[str, Path]:
    """The newest cached kernel that ``wanted`` names, fetched if there is none: its version and its directory."""
    home = CACHE / "kernels"
    home.mkdir(parents=True, exist_ok=True)
    cached = found = matching(os.listdir(home), wanted, flavour)
    if update or not cached:
        found = matching(available(update=update), wanted, flavour)
    if not found:
        die(f"no {flavour} kernel matches {wanted}; see vmrun --list")
    version = found[-1]
    if version not in cached:
        _fetch(version, home)
    return version, home / version


def _fetch(version: str, home: Path) -> None:
    say("fetching kernel", version)
    names = set(packages())
    parts = [part + version for part in ("linux-image-", "linux-binary-", "linux-modules-") if part + version in names]
    with tempfile.TemporaryDirectory(dir=home) as directory:
        unpacked, kernel = Path(directory, "deb"), Path(directory, "kernel")
        _unpack(parts, unpacked)
        (kernel / "lib/modules").mkdir(parents=True)
        # in /boot, or with the modules of newer kernels
        shutil.copy(next(unpacked.glob("**/vmlinuz*")), kernel / "vmlinuz")
        next(unpacked.glob(f"**/lib/modules/{version}")).rename(kernel / "lib/modules" / version)
        subprocess.run([busybox(), "depmod", "-b", kernel, version], check=True)
        kernel.rename(home / version)
