"""Which language a process is written in, and whether one thread serves one request at a time.

The answers are Beyla's (go, java, dotnet, python, ruby, nodejs, rust, php, cpp, generic); the order is by price: the
name of the executable, then its ELF headers (once per file), then the mapped libraries.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from onlooker.discover.elf import ElfFacts, read_facts
from onlooker.discover.proc import Process

_INTERPRETERS: Final = (
    (re.compile(r"(?:python|pypy)(?P<version>\d(?:\.\d+)?)?(?:[-.]?d(?:bg)?)?"), "python", "cpython"),
    (re.compile(r"node(?:js)?(?P<version>)"), "nodejs", "nodejs"),
    (re.compile(r"deno(?P<version>)"), "nodejs", "deno"),
    (re.compile(r"bun(?P<version>)"), "nodejs", "bun"),
    (re.compile(r"j?ruby(?P<version>\d(?:\.\d+)?)?"), "ruby", "ruby"),
    (re.compile(r"java(?P<version>)"), "java", "java"),
    (re.compile(r"php(?:-fpm|-cgi)?(?P<version>\d(?:\.\d+)?)?(?:-fpm)?"), "php", "php"),
    (re.compile(r"dotnet(?P<version>)"), "dotnet", ".NET"),
    (re.compile(r"perl(?P<version>\d(?:\.\d+)*)?"), "generic", "perl"),
    (re.compile(r"beam(?:\.smp|\.debug)?(?P<version>)"), "generic", "beam"),
)
_LIBRARIES: Final = (
    (re.compile(rb"libcoreclr\.so"), "dotnet", ".NET"),
    (re.compile(rb"libjvm\.so"), "java", "java"),
    (re.compile(rb"libpython(\d\.\d+)"), "python", "cpython"),
    (re.compile(rb"libruby(?:-(\d\.\d+))?\S*\.so"), "ruby", "ruby"),
    (re.compile(rb"libphp(\d(?:\.\d+)?)?\.so"), "php", "php"),
    (re.compile(rb"libnode\.so"), "nodejs", "nodejs"),
)
_RUNTIMES: Final = {"go": "go", "rust": "rust", "python": "cpython", "nodejs": "nodejs", "ruby": "ruby", "php": "php",
                    "dotnet": ".NET"}  # fmt: skip
_PATH_VERSION: Final = re.compile(r"/v?(\d+\.\d+\.\d+)/(?:\S*/)?bin/[^/]*$")
_JAVA_HOME_VERSION: Final = re.compile(r"(?:java|jdk|jre|temurin|zulu|corretto|openjdk|graalvm)[-_]?(?:1\.)?(\d+)")
_JAVA_RELEASE: Final = re.compile(rb'^JAVA_VERSION="([\d._]{1,20})', re.MULTILINE)

_EVENT_LOOP_WORDS: Final = {
    "python": re.compile(
        r"uvicorn|hypercorn|daphne|granian|sanic|tornado|aiohttp|asgi|gevent|eventlet|fastapi|starlette", re.IGNORECASE
    ),
    "ruby": re.compile(r"\bfalcon\b"),
    "php": re.compile(r"swoole|octane|reactphp|amphp", re.IGNORECASE),
}
_EVENT_LOOP_FILES: Final = {
    "python": re.compile(rb"_asyncio\.|uvloop|_greenlet|_uv\.|_corecext"),
    "php": re.compile(rb"(?:open)?swoole\.so"),
}
# These import asyncio in passing and still serve one request a thread.
_SYNC_SERVER_WORDS: Final = re.compile(r"\bgunicorn\b|mod_wsgi|uwsgi|waitress|manage\.py\S* runserver|\bflask\b")


@dataclass(frozen=True, slots=True)
class Language:
    """What a process is written in.

    Attributes:
        name: `telemetry.sdk.language`, or "generic".
        runtime: `process.runtime.name`; empty for code without one.
        version: `process.runtime.version`; empty where finding it would not be cheap.
        is_interpreter: The executable is the runtime itself, so that the program stands in the arguments.
    """

    name: str
    runtime: str = ""
    version: str = ""
    is_interpreter: bool = False


class Languages:
    """Detects languages; remembers the ELF facts of ``capacity`` executables by device, inode, size and change time."""

    def __init__(self, capacity: int = 512) -> None:
        self._capacity = capacity
        self._facts: OrderedDict[tuple[int, int, int, int], ElfFacts] = OrderedDict()

    def detect(self, process: Process) -> Language:
        """The language of a process; "generic" when nothing gives it away."""
        name = process.exe_name
        for pattern, language, runtime in _INTERPRETERS:
            if match := pattern.fullmatch(name):
                version = match["version"] or ""
                if language == "python" and name.startswith("pypy"):
                    runtime = "pypy"
                return Language(language, runtime, _runtime_version(process, language, version), True)
        facts = self._elf_facts(process)
        if facts.language not in ("", "cpp"):
            return Language(facts.language, _RUNTIMES.get(facts.language, ""), facts.version)
        language, runtime, version = "", "", ""
        if facts.dynamic or not facts.language:
            language, runtime, version = _mapped(process)
        if not language and "php" in process.exe:
            language, runtime = "php", "php"
        return Language(language or facts.language or "generic", runtime, version)

    def _elf_facts(self, process: Process) -> ElfFacts:
        try:
            file = os.stat(process.exe_file)
        except OSError:
            return ElfFacts()
        key = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
        facts = self._facts.get(key)
        if facts is None:
            facts = self._facts[key] = read_facts(process.exe_file)
            if len(self._facts) > self._capacity:
                self._facts.popitem(last=False)
        else:
            self._facts.move_to_end(key)
        return facts


def trusts_thread(process: Process, language: Language) -> bool:
    """Whether a thread is a certain execution context: it serves one request from its beginning to its end.

    False for runtimes that move work between threads or run several requests on one (goroutines, tasks, virtual
    threads, event loops), and whenever a Python, Ruby or PHP process shows signs of an event loop: a wrong parent is
    worse than none.
    """
    if language.name in ("go", "rust", "dotnet", "nodejs") or language.runtime == "beam":
        return False
    if language.name == "java":
        major = re.match(r"(?:1\.)?(\d+)", language.version)
        return major is not None and int(major[1]) < 21  # virtual threads, JEP 444
    words = _EVENT_LOOP_WORDS.get(language.name)
    if words is None:
        return True
    command = " ".join(process.args)[:8192]
    if words.search(command):
        return False
    files = _EVENT_LOOP_FILES.get(language.name)
    if files is None or _SYNC_SERVER_WORDS.search(command):
        return True
    return not any(files.search(name) for name in process.mapped_files())


def _mapped(process: Process) -> tuple[str, str, str]:
    """Beyla's order holds between the libraries: a .NET or Java process that embeds Python stays what it is."""
    best, is_cpp = len(_LIBRARIES), False
    answer = ("", "", "")
    for name in process.mapped_files():
        if name.startswith((b"libstdc++.so", b"libc++.so")):
            is_cpp = True
            continue
        for rank, (pattern, language, runtime) in enumerate(_LIBRARIES[:best]):
            if match := pattern.match(name):
                version = match[1].decode() if match.groups() and match[1] else ""
                best, answer = rank, (language, runtime, version)
                break
        if best == 0:
            break
    return answer if answer[0] or not is_cpp else ("cpp", "", "")


def _runtime_version(process: Process, language: str, from_name: str) -> str:
    if language == "java":
        home = process.exe.removesuffix("/bin/java").removesuffix("/jre")
        if match := _JAVA_RELEASE.search(process.file(f"{home}/release", 4096)):
            return match[1].decode()
        found = _JAVA_HOME_VERSION.search(home)
        return found[1] if found else ""
    match_path = _PATH_VERSION.search(process.exe)
    if match_path and match_path[1].startswith(from_name):
        return match_path[1]
    return from_name
