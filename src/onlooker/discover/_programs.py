"""The useful name of a program: what its owner would call it, never the name of its interpreter.

One function a runtime reads the command line as that runtime does.  A name that says nothing ("app", "main",
"server") gives way to the directory or project around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from onlooker.discover.language import Language
from onlooker.discover.proc import Process


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


GENERIC_NAMES: Final = _words(
    "app apps application asgi bin bootstrap bundle cli cmd config core index init launcher lib main manage "
    "program project run runner script serve server service services site src start startup web wsgi __main__ "
    "mainkt"
)
_GENERIC_DIRECTORIES: Final = GENERIC_NAMES | _words(
    "backend build code current data debug deploy dist etc home html htdocs libs local media mnt opt out "
    "public quarkus-app release releases root sbin share shared srv target tmp usr var workdir workspace www "
    "www-data"
)
_APP_SPEC: Final = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*(?:\(.*\))?")
_JAR_VERSION: Final = re.compile(r"(.+?)[-_.]v?(\d+(?:\.\d+)+(?:[-.+][\w.]+)*|\d+)")
_TITLE: Final = re.compile(r"gunicorn: (?:master|worker) \[([^\]]{1,200})\]")
_PUMA_TITLE: Final = re.compile(r"puma[: ].*\[([^\]]{1,200})\]\s*$")
_FPM_POOL: Final = re.compile(r"php-fpm: pool (\S{1,200})")
PACKAGE_JSON_LIMIT: Final = 256 * 1024
_MAX_DEPTH: Final = 12


@dataclass(frozen=True, slots=True)
class Program:
    """What a command line says.

    Attributes:
        name: Empty when nothing useful was found.
        version: Of the program, where its files or their names carry it.
        helper: The process runs code handed over on the command line or by a pipe, as multiprocessing workers do:
            it belongs to whatever started it.
        split: The name tells tenants of one program apart (pools of PHP-FPM), also below a common parent.
    """

    name: str = ""
    version: str = ""
    helper: bool = False
    split: bool = False


def program_of(process: Process, language: Language) -> Program:
    """The program that ``process`` runs."""
    reader = _READERS.get(language.runtime) if language.is_interpreter else None
    name = process.exe_name or (process.args[0].rpartition("/")[2] if process.args else "") or process.stat.comm
    if reader is not None:
        return reader(process)
    alias = process.args[0].split(" ")[0].rpartition("/")[2] if process.args else ""
    if (
        alias[:15] == process.stat.comm and alias
    ):  # started by another name of the file: redis-server is redis-check-rdb
        name = alias
    if name.startswith("uwsgi"):
        return _uwsgi(process)
    if process.exe.startswith("/memfd:") and process.args:  # a program that was never a file
        name = process.args[0].split(" ")[0].rpartition("/")[2] or name
    is_inline = any(re.fullmatch(r"-\w*c", arg) for arg in process.args[1:4])
    if name in _SHELLS and not is_inline and (script := _first_operand(process.args[1:], frozenset())):
        return Program(_script_name(process, script))
    if name.casefold() in GENERIC_NAMES:
        return Program(directory_name(process.exe.rpartition("/")[0]) or name)
    return Program(name)


_SHELLS: Final = frozenset(("sh", "bash", "dash", "ash", "busybox", "zsh", "lua", "luajit", "tclsh", "perl"))


def directory_name(path: str) -> str:
    """The innermost directory of ``path`` that names something; empty if none does."""
    parts = [part for part in path.split("/") if part]
    for position in range(len(parts) - 1, -1, -1):
        part = parts[position]
        is_user = position == 1 and parts[0] in ("home", "Users")
        if part.casefold() not in _GENERIC_DIRECTORIES and not part.isdigit() and not is_user:
            return part
    return ""


def _stem(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    stem = name.rpartition(".")[0] if name.rpartition(".")[2] in _SUFFIXES else name
    return stem or name


_SUFFIXES: Final = _words("py pyc pyz js mjs cjs ts mts cts tsx jsx rb php phar pl sh lua java kts jar war dll ru")


def _absolute(process: Process, path: str) -> str:
    """A path as the process would see it, with ``.`` and ``..`` taken out."""
    whole = path if path.startswith("/") else f"{process.cwd}/{path}"
    parts: list[str] = []
    for part in whole.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _script_name(process: Process, script: str) -> str:
    stem = _stem(script)
    if stem.casefold() not in GENERIC_NAMES:
        return stem
    return directory_name(_absolute(process, script).rpartition("/")[0]) or directory_name(process.cwd) or stem


def _module_name(process: Process, module: str) -> str:
    """A dotted name without the parts that every project has; the directory if no other part is left."""
    parts = module.split(".")
    while parts and parts[-1].casefold() in GENERIC_NAMES:
        parts.pop()
    while parts and parts[0].casefold() in GENERIC_NAMES:
        parts.pop(0)
    return ".".join(parts) or directory_name(process.cwd) or module.split(".")[0]


def _first_operand(args: Iterable[str], with_value: frozenset[str]) -> str:
    """The first argument that is neither an option nor the value of one."""
    skip = False
    for arg in args:
        if skip:
            skip = False
        elif arg.startswith("-") and len(arg) > 1:
            skip = arg in with_value
        else:
            return arg
    return ""


def _option(args: tuple[str, ...], *names: str) -> str:
    """The value of ``--name value``, ``--name=value``; empty if it is not given."""
    for position, arg in enumerate(args):
        for name in names:
            if arg == name and position + 1 < len(args):
                return args[position + 1]
            if arg.startswith(name + "=") and name.startswith("--"):
                return arg[len(name) + 1 :]
    return ""


# Python


def _python(process: Process) -> Program:
    args = process.args
    if args and (title := _TITLE.match(args[0])):
        return Program(_module_name(process, title[1].split(":")[0]))
    rest = args[1:]
    while rest:
        arg, rest = rest[0], rest[1:]
        if arg in ("-W", "-X", "--check-hash-based-pycs"):
            rest = rest[1:]
        elif re.match(r"-[bBdEhiIOPqsSuvVx]*c", arg) and not arg.startswith("--"):
            return Program(helper=True)
        elif (module := re.fullmatch(r"-[bBdEhiIOPqsSuvVx]*m(.*)", arg)) and not arg.startswith("--"):
            name, rest = (module[1], rest) if module[1] else (rest[0] if rest else "", rest[1:])
            return _python_tool(process, name.split(".")[0], rest) or Program(_run_module(process, name))
        elif arg == "-":
            return Program(helper=True)
        elif not arg.startswith("-"):
            return _python_tool(process, _stem(arg), rest, script=arg) or Program(_script_name(process, arg))
    return Program(helper=True)


def _run_module(process: Process, module: str) -> str:
    trimmed = module.removesuffix(".__main__").removesuffix(".main")
    return trimmed if trimmed.casefold() not in GENERIC_NAMES else _module_name(process, module)


_SERVER_VALUES: Final = _words(
    "-b --bind -w --workers -k --worker-class -c --config -n --name --host --port -p --uds --fd --chdir "
    "--app-dir --loop --http --log-config --log-level --env-file -t --timeout --threads -u -e --endpoint "
    "--interface --root-path --keep-alive --worker-tmp-dir --worker-connections --max-requests --max-requests-jitter "
    "--graceful-timeout --backlog -m --umask --user -g --group --access-logfile --error-logfile --log-file --pid "
    "--pythonpath --forwarded-allow-ips --timeout-keep-alive --limit-concurrency --ws --lifespan --reload-dir"
)


def _python_tool(process: Process, tool: str, args: tuple[str, ...], *, script: str = "") -> Program | None:
    """Programs that run an application named by an argument."""
    if tool in ("gunicorn", "uvicorn", "hypercorn", "daphne", "granian", "waitress-serve", "waitress", "sanic"):
        given = _option(args, "--name", "-n") if tool == "gunicorn" else ""
        if given:
            return Program(given)
        app = _first_operand(args, _SERVER_VALUES) or process.environ.get("UVICORN_APP", "")
        return Program(_application(process, app, _option(args, "--chdir", "--app-dir")))
    if tool in ("flask", "fastapi", "litestar", "quart"):
        app = _option(args, "--app", "-A") or process.environ.get("FLASK_APP", "")
        if not app and tool == "fastapi":
            app = _first_operand([a for a in args if a not in ("run", "dev")], _SERVER_VALUES)
        return Program(_application(process, app))
    if tool == "celery":
        app = _option(args, "-A", "--app")
        role = next((arg for arg in args if arg in ("worker", "beat", "flower")), "worker")
        name = _module_name(process, app.split(":")[0].removesuffix(".celery")) if app else directory_name(process.cwd)
        return Program(f"{name or 'celery'}-{role}")
    if tool in ("manage", "django-admin", "django"):
        directory = _absolute(process, script).rpartition("/")[0] if tool == "manage" and script else process.cwd
        settings = process.environ.get("DJANGO_SETTINGS_MODULE", "")
        return Program(directory_name(directory) or (_module_name(process, settings.removesuffix(".settings"))))
    return None


def _application(process: Process, app: str, directory: str = "") -> str:
    if match := _APP_SPEC.fullmatch(app):
        app = match[1]
    elif app.endswith(".py") or "/" in app:
        return _script_name(process, app)
    if app:
        parts = [part for part in app.split(".") if part.casefold() not in GENERIC_NAMES]
        if not parts and directory and (named := directory_name(_absolute(process, directory))):
            return named
        return _module_name(process, app)
    return directory_name(process.cwd)


def _uwsgi(process: Process) -> Program:
    args = process.args
    if module := _option(args, "--module", "-w"):
        return Program(_application(process, module))
    if path := _option(args, "--wsgi-file", "--ini", "--yaml", "--file"):
        return Program(_script_name(process, path.removesuffix(".ini")))
    return Program(directory_name(process.cwd) or "uwsgi")


# JavaScript

_NODE_VALUES: Final = _words(
    "-r --require --import --loader --experimental-loader -C --conditions --env-file --config -c --title "
    "--preload --cwd --import-map --lock"
)


def _node(process: Process) -> Program:
    args = process.args
    if len(args) == 1 and not re.search(r"(?:node|nodejs|deno|bun)$", args[0]):  # process.title was set
        return _package(process, process.cwd) or Program(args[0].split(" ")[0].rpartition("/")[2])
    rest = list(args[1:])
    if process.exe_name in ("deno", "bun"):
        rest = [arg for position, arg in enumerate(rest) if not (position == 0 and arg in ("run", "serve", "x"))]
    if any(arg in ("-e", "--eval", "-p", "--print", "-pe") for arg in rest[:8]) and not _option(args, "-r"):
        return Program(helper=True)
    script = _first_operand(rest, _NODE_VALUES)
    if not script or script == "-":
        return Program(helper=True)
    path = _absolute(process, script)
    root, inside, _ = path.partition("/node_modules/")
    found = _package(process, root, depth=1) if inside and root.count("/") > 1 and root != "/usr/lib" else None
    found = found or _package(process, path.rpartition("/")[0])
    return found or Program(_script_name(process, script))


def _package(process: Process, directory: str, depth: int = _MAX_DEPTH) -> Program | None:
    """Name and version of the nearest ``package.json`` at or above ``directory``."""
    version = ""
    for _ in range(depth):
        raw = process.file(f"{directory}/package.json", PACKAGE_JSON_LIMIT)
        if raw:
            try:
                package = json.loads(raw)
            except (ValueError, RecursionError):
                package = None
            if isinstance(package, dict):
                name, given = package.get("name"), package.get("version")
                version = version or (given if isinstance(given, str) else "")
                if isinstance(name, str) and name.strip():
                    return Program(name.rpartition("/")[2][:214], version[:64])
        if not directory:
            break
        directory = directory.rpartition("/")[0]
    return None


# The Java virtual machine

_JAVA_VALUES: Final = _words(
    "-cp -classpath --class-path -p --module-path --upgrade-module-path --add-modules --add-exports "
    "--add-opens --add-reads --limit-modules --patch-module --source --enable-native-access -d "
    "--describe-module"
)
_JAVA_CONTAINERS: Final = {
    "org.apache.catalina.startup.Bootstrap": "tomcat",
    "org.eclipse.jetty.start.Main": "jetty",
    "org.jboss.modules.Main": "wildfly",
}


def _java(process: Process) -> Program:
    args = process.args
    spring = process.environ.get("SPRING_APPLICATION_NAME", "")
    for arg in args[1:]:
        for prefix in ("-Dspring.application.name=", "--spring.application.name="):
            spring = arg[len(prefix) :] if arg.startswith(prefix) else spring
    options = list(args[1:])
    jar = main = ""
    for position, arg in enumerate(options):
        if arg in ("-jar", "-m", "--module") and position + 1 < len(options):
            jar, main = (options[position + 1], "") if arg == "-jar" else ("", options[position + 1].split("/")[-1])
            break
        if not arg.startswith(("-", "@")) and (position == 0 or options[position - 1] not in _JAVA_VALUES):
            main = arg
            break
    name, version = _java_name(process, jar, main)
    return Program(spring or name, version, helper=not (spring or name))


def _java_name(process: Process, jar: str, main: str) -> tuple[str, str]:
    if jar:
        stem, version = _stem(jar), ""
        if match := _JAR_VERSION.fullmatch(stem):
            stem, version = match[1], match[2]
        if stem.casefold() in GENERIC_NAMES or stem == "quarkus-run":
            stem = _script_name(process, f"{_absolute(process, jar).rpartition('/')[0]}/main") or stem
        return (stem, version) if stem != "main" else (_stem(jar), version)
    if main.endswith(".java"):
        return _script_name(process, main), ""
    if main in _JAVA_CONTAINERS:
        base = next((a.partition("=")[2] for a in process.args if a.startswith("-Dcatalina.base=")), "")
        return directory_name(base) or _JAVA_CONTAINERS[main], ""
    package, _, simple = main.rpartition(".")
    simple = simple.removesuffix("Kt") or simple
    if "JarLauncher" in simple or "springframework.boot.loader" in main or not package:
        is_generic = simple.casefold() in GENERIC_NAMES or "Launcher" in simple
        return (directory_name(process.cwd) or simple) if is_generic else simple, ""
    return (_module_name(process, main) if simple.casefold() in GENERIC_NAMES else simple), ""


# Ruby, PHP, Erlang, .NET, Perl

_RUBY_TOOLS: Final = _words("puma rails rackup unicorn thin falcon sidekiq bundle passenger rake iodine")


def _ruby(process: Process) -> Program:
    args = process.args
    title = args[0] if args else ""
    if match := _PUMA_TITLE.match(title):
        return Program(match[1] if match[1].casefold() not in _GENERIC_DIRECTORIES else directory_name(process.cwd))
    if match := re.match(r"sidekiq \S+ (\S+) \[", title):
        return Program(f"{match[1]}-sidekiq")
    tool = title.split(" ")[0].rstrip(":").rpartition("/")[2]
    if tool not in _RUBY_TOOLS:
        if any(re.match(r"-[\w]*e$", arg) for arg in args[1:3]):
            return Program(helper=True)
        script = _first_operand(args[1:], frozenset(("-I", "-r", "-C", "-E")))
        if not script or script == "-":
            return Program(helper=True)
        tool = _stem(script)
        if tool not in _RUBY_TOOLS:
            return Program(_script_name(process, script))
    directory = _option(args, "--dir", "-C") if tool == "bundle" else ""
    name = directory_name(_absolute(process, directory) if directory else process.cwd)
    return Program(f"{name}-sidekiq" if name and tool == "sidekiq" else name or tool)


def _php(process: Process) -> Program:
    args = process.args
    if args and (pool := _FPM_POOL.match(args[0])):
        return Program(pool[1], split=True) if pool[1] != "www" else Program("php-fpm")
    if "fpm" in process.exe_name or (args and args[0].startswith("php-fpm")):
        return Program("php-fpm")
    if "-S" in args:
        root = _option(args, "-t") or process.cwd
        return Program(directory_name(_absolute(process, root)) or _stem(_first_operand(args[1:], _PHP_VALUES)))
    script = _first_operand(args[1:], _PHP_VALUES)
    if not script or "-r" in args[1:4]:
        return Program(helper=True)
    if _stem(script) in ("artisan", "console", "index", "public"):
        return Program(directory_name(_absolute(process, script).rpartition("/")[0]) or _stem(script))
    return Program(_script_name(process, script))


_PHP_VALUES: Final = frozenset(("-S", "-t", "-c", "-d", "-z", "-f", "-B", "-R", "-F", "-E"))


def _beam(process: Process) -> Program:
    release = process.environ.get("RELEASE_NAME") or _option(process.args, "-sname", "-name").split("@")[0]
    return Program(release or directory_name(process.cwd) or "beam")


def _dotnet(process: Process) -> Program:
    args = list(process.args[1:])
    if args and args[0] == "exec":
        args = args[1:]
    script = _first_operand(
        args, frozenset(("--runtimeconfig", "--depsfile", "--fx-version", "--additionalprobingpath"))
    )
    if not script:
        return Program(helper=True)
    return Program(_script_name(process, script) if script.endswith(".dll") else directory_name(process.cwd) or script)


def _perl(process: Process) -> Program:
    script = _first_operand(process.args[1:], frozenset(("-I", "-M")))
    if not script or any(arg in ("-e", "-E") for arg in process.args[1:4]):
        return Program(helper=True)
    return Program(_script_name(process, script))


_READERS: Final[dict[str, Callable[[Process], Program]]] = {
    "cpython": _python, "pypy": _python, "nodejs": _node, "deno": _node, "bun": _node, "java": _java, "ruby": _ruby,
    "php": _php, "beam": _beam, ".NET": _dotnet, "perl": _perl,
}  # fmt: skip
