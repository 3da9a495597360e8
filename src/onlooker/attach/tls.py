"""Which TLS implementations a process runs, and where their plaintext passes.

Receives a process id, hands on one `TlsLibrary` per file that moves TLS plaintext, with a probe site per function; or
with the reason why nothing of it can be seen, for people. Files are examined once per inode: the answers are kept in a
bounded table. A library that is loaded later is found by asking again, which costs one read of the maps.
"""

from __future__ import annotations

import enum
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onlooker.attach import golang
from onlooker.attach.elf import ElfFile, Symbol
from onlooker.attach.maps import MappedFile, mapped_files, open_paths
from onlooker.attach.sites import Need, Prices, Site, SiteChooser
from onlooker.errors import NotElfError

_CACHE_LIMIT = 4096  # examined files that are remembered


class TlsKind(enum.Enum):
    """Implementations that are told apart."""

    OPENSSL = "openssl"
    BORINGSSL = "boringssl"
    GNUTLS = "gnutls"
    NSS = "nss"
    GO = "go"
    RUSTLS = "rustls"
    DOTNET = "dotnet"
    JAVA = "java"
    MBEDTLS = "mbedtls"
    WOLFSSL = "wolfssl"


class Direction(enum.Enum):
    """Which way the plaintext of a function goes."""

    READ = "read"
    WRITE = "write"
    NONE = "none"


class Abi(enum.Enum):
    """How a function says what it moved. Numbers refer to `Site.registers`."""

    COUNT = "count"  # connection 0, buffer 1, length 2; returns the bytes moved, or what is not positive
    FLAG = "flag"  # connection 0, buffer 1, length 2, size_t *moved 3; returns 1 if it moved something
    RUST_PAYLOAD = "rust_payload"  # connection 0, *Payload 1: plaintext that was received; no return needed
    RUST_CHUNKS = "rust_chunks"  # connection 0, *OutboundChunks 1; returns the bytes taken
    GO_SLICE = "go_slice"  # connection 0, buffer 1, length 2, goroutine in r14; no return probe
    GO_COPY = "go_copy"  # destination 0, plaintext 1, length 2: plaintext of the goroutine's current read
    GO_READER = "go_reader"  # *bytes.Reader 0, buffer 1, capacity 2: the same, before it is copied
    EVENT = "event"  # connection 0; moves nothing
    SENDFILE = "sendfile"  # connection 0, file 1, offset 2, length 3; returns the bytes moved, which are in no buffer
    NSPR = "nspr"  # as COUNT, of a descriptor that may be anything: TLS if a socket under it moves TLS meanwhile


@dataclass(frozen=True, slots=True)
class TlsFunction:
    """One function to probe.

    Attributes:
        name: As the library calls it.
        covers: Names of all functions of the interface that it sees.
        direction: Of the plaintext.
        abi: How to read its arguments and its return.
        arguments: Where the arguments are seen.
        returns: Where the return is seen; None for ABIs without.
    """

    name: str
    covers: tuple[str, ...]
    direction: Direction
    abi: Abi
    arguments: Site
    returns: Site | None = None

    @property
    def expected_price_us(self) -> float:
        """Of one call."""
        # Entry and return probe on one instruction share its breakpoint.
        if self.returns is not None and self.returns.offset == self.arguments.offset:
            return self.returns.expected_price_us
        return round(self.arguments.expected_price_us + (self.returns.expected_price_us if self.returns else 0.0), 2)


@dataclass(frozen=True, slots=True)
class TlsLibrary:
    """One file through which a process moves TLS plaintext.

    Attributes:
        kind: The implementation.
        path: As the process sees it.
        device: Of the opened file.
        inode: Of the opened file; together with ``device`` what "attached once per file" goes by.
        open_path: A path by which this process reaches the same file, a deleted one too, while that process lives.
        version: As the file says, empty if it does not.
        functions: By the name of the interface; one `TlsFunction` may stand under several names.
        visible: Whether plaintext can be seen.
        reason: Why not, or what of it stays invisible; empty if all is well.
    """

    kind: TlsKind
    path: str
    device: int
    inode: int
    open_path: str
    version: str
    functions: Mapping[str, TlsFunction]
    visible: bool
    reason: str = ""

    def probes(self) -> list[TlsFunction]:
        """Each function once."""
        return list({id(function): function for function in self.functions.values()}.values())


@dataclass(frozen=True, slots=True)
class Finding:
    """What the examination of a file gave: a `TlsLibrary` without the process."""

    kind: TlsKind
    version: str = ""
    functions: Mapping[str, TlsFunction] = field(default_factory=dict)
    visible: bool = False
    reason: str = ""


# What is asked of every file, in one pass over its symbol tables.
_OPENSSL_EVENTS = ("SSL_do_handshake", "SSL_free")
_WITH_RETURN = frozenset({"SSL_do_handshake"})  # what a thread moves on a socket meanwhile is the session's
_SYMBOLS = (
    "SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_sendfile", "SSL_CTX_set_grease_enabled", "SSL_set_fd",
    *_OPENSSL_EVENTS,
    "gnutls_record_send", "gnutls_record_send2", "gnutls_record_recv", "gnutls_deinit",
    "PR_Read", "PR_Write", "PR_Send", "PR_Recv", "PR_Close",
    "CryptoNative_SslRead", "CryptoNative_SslWrite",
    "JNI_CreateJavaVM", "mbedtls_ssl_read", "wolfSSL_read", "mbedtls_ssl_write", "wolfSSL_write",
)  # fmt: skip

# Names of libraries that move no TLS and are mapped by nearly everything.
_NEVER = re.compile(
    r"(ld-linux|ld-musl|libc[.-]|libm[.-]|libdl[.-]|librt[.-]|libpthread|libgcc_s|libstdc\+\+|libz[.-]|libresolv"
    r"|libnss_|libcrypto[.-]|libicu|liblzma|libbz2|libzstd|libexpat|libffi|libtinfo|libreadline|libuuid|linux-vdso)"
)
# What both ways in which rustc writes names have in common.
_RUST_RECEIVED = (b"_", b"6rustls12common_state", b"11CommonState23take_received_plaintext")
_RUST_SENDS = (b"_", b"6rustls12common_state", b"11CommonState20send_appdata_encrypt")
_RUST_TRAFFIC = (b"_", b"rustls", b"ExpectTraffic", b"common_state", b"State", b"6handle")
_RUST_LAYOUTS = ("0.23",)
"""Of rustls whose types are known as ``bpf/tls.bpf.c`` reads them."""
_NSS_ABOVE = frozenset({"libssl3.so", "libxul.so"})
"""What speaks TLS on top of NSPR."""
_OPENSSL_VERSION = re.compile(rb"OpenSSL \d+\.\d+\.\d+[a-z]{0,2}")
_RUSTLS_VERSION = re.compile(rb"rustls-\d+\.\d+\.\d+")
_STATIC_MARKS = {
    b"ssl/ssl_lib.c": (TlsKind.OPENSSL, "OpenSSL or BoringSSL"),
    b"/rustls-0.": (TlsKind.RUSTLS, "rustls"),
    b"library/ssl_tls.c": (TlsKind.MBEDTLS, "Mbed TLS"),
    b"wolfSSL_": (TlsKind.WOLFSSL, "wolfSSL"),
}


class TlsCatalog:
    """Examines processes and remembers the files it has examined.

    Attributes:
        skipped: Files that could not be examined, by reason.
    """

    def __init__(self, *, proc: str = "/proc", prices: Prices | None = None) -> None:
        self._proc = proc
        self._prices = prices or Prices()
        self._known: OrderedDict[tuple[int, int, int, int], tuple[Finding, ...]] = OrderedDict()
        self.skipped: dict[str, int] = {}

    def libraries(self, pid: int) -> list[TlsLibrary]:
        """The TLS implementations of a process; empty if it has none or is gone."""
        found: list[TlsLibrary] = []
        names: set[str] = set()
        for file in mapped_files(pid, self._proc):
            name = os.path.basename(file.path)
            names.add(name)
            if _NEVER.match(name) or not file.path.startswith("/"):
                continue
            opened = self._open(pid, file)
            if opened is None:
                continue
            fd, path = opened
            try:
                status = os.fstat(fd)
                findings = self._examine(fd, status)
            finally:
                os.close(fd)
            found += [
                TlsLibrary(
                    finding.kind, file.path, status.st_dev, status.st_ino, path, finding.version, finding.functions,
                    finding.visible, finding.reason,
                )
                for finding in findings
            ]  # fmt: skip
        if not names & _NSS_ABOVE:  # NSPR alone is no TLS, and a probe on each of its reads would be dear
            found = [library for library in found if library.kind is not TlsKind.NSS]
        return _without_shims(found)

    def _open(self, pid: int, file: MappedFile) -> tuple[int, str] | None:
        for path in open_paths(pid, file, self._proc):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:
                continue
            if "/map_files/" in path or os.fstat(fd).st_ino == file.inode:
                return fd, path
            os.close(fd)
        self._skip("the mapped file cannot be opened")
        return None

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def _examine(self, fd: int, status: os.stat_result) -> tuple[Finding, ...]:
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        try:
            with ElfFile(fd) as elf:
                findings = examine(elf, self._prices)
        except NotElfError as err:
            self._skip(str(err))
            findings = ()
        self._known[key] = findings
        while len(self._known) > _CACHE_LIMIT:
            self._known.popitem(last=False)
        return findings


def _without_shims(libraries: list[TlsLibrary]) -> list[TlsLibrary]:
    """Leave shims to the library below them, where that is visible: the same bytes pass through both."""
    below = any(library.kind is TlsKind.OPENSSL and library.visible for library in libraries)
    if not below:
        return libraries
    return [
        replace(library, functions={}, reason="seen in the OpenSSL that it calls")
        if library.kind is TlsKind.DOTNET
        else library
        for library in libraries
    ]


def examine(elf: ElfFile, prices: Prices | None = None) -> tuple[Finding, ...]:
    """What TLS implementations a file holds.

    Raises:
        NotElfError: The file cannot be read on the way.
    """
    chooser = SiteChooser(elf, prices)
    symbols = elf.find_functions(_SYMBOLS)
    found: list[Finding] = []
    if "SSL_read" in symbols and "SSL_write" in symbols:
        found.append(_openssl(elf, chooser, symbols))
    if "gnutls_record_recv" in symbols and "gnutls_record_send" in symbols:
        found.append(_gnutls(elf, chooser, symbols))
    if "PR_Read" in symbols and "PR_Send" in symbols:
        found.append(_nspr(chooser, symbols))
    if "CryptoNative_SslRead" in symbols:
        functions = _plain(
            chooser, symbols, {"CryptoNative_SslRead": Direction.READ, "CryptoNative_SslWrite": Direction.WRITE}
        )
        found.append(Finding(TlsKind.DOTNET, "", functions, bool(functions)))
    if "JNI_CreateJavaVM" in symbols:
        reason = "TLS of the Java runtime is Java code without symbols; its connections are seen, not their content"
        found.append(Finding(TlsKind.JAVA, reason=reason))
    for name, kind in (("mbedtls_ssl", TlsKind.MBEDTLS), ("wolfSSL", TlsKind.WOLFSSL)):
        # Both have the calling convention of SSL_read and SSL_write.
        functions = _plain(chooser, symbols, {f"{name}_read": Direction.READ, f"{name}_write": Direction.WRITE})
        if functions:
            found.append(Finding(kind, "", functions, visible=True))
    if golang.is_go(elf):
        found += _go(elf, chooser)
    found += _rustls(elf, chooser)
    if not found:
        found += _static_without_symbols(elf)
    return tuple(found)


def _pair(chooser: SiteChooser, symbol: Symbol, direction: Direction, abi: Abi, arguments: int) -> TlsFunction | None:
    """A function with the sites of its arguments and its return."""
    entry = chooser.choose(symbol, Need.ARGUMENTS, arguments=arguments)
    returned = chooser.choose(symbol, Need.RETURN, arguments=arguments)
    if entry is None or returned is None:
        return None
    if returned.is_cheap:
        # The return probe's place holds the arguments too: one breakpoint serves both.
        cost = chooser.prices.of(returned.price, returns=False)
        entry = replace(returned, need=Need.ARGUMENTS, expected_price_us=cost)
    return TlsFunction(symbol.name, (symbol.name,), direction, abi, entry, returned)


def _plain(
    chooser: SiteChooser, symbols: Mapping[str, Symbol], names: Mapping[str, Direction], abi: Abi = Abi.COUNT
) -> dict[str, TlsFunction]:
    found: dict[str, TlsFunction] = {}
    for name, direction in names.items():
        function = _pair(chooser, symbols[name], direction, abi, 3) if name in symbols else None
        if function is not None:
            found[name] = function
    return found


def _events(chooser: SiteChooser, symbols: Mapping[str, Symbol], names: tuple[str, ...]) -> dict[str, TlsFunction]:
    """Functions that end or begin something; left out where a probe on them would be dear."""
    found: dict[str, TlsFunction] = {}
    for name in names:
        site = chooser.choose(symbols[name], Need.ARGUMENTS, arguments=1) if name in symbols else None
        if site is not None and site.is_cheap:
            back = chooser.choose(symbols[name], Need.RETURN, arguments=1) if name in _WITH_RETURN else None
            back = back if back is not None and back.is_cheap else None
            if back is not None:  # one breakpoint for both
                site = replace(back, need=Need.ARGUMENTS, expected_price_us=site.expected_price_us)
            found[name] = TlsFunction(name, (name,), Direction.NONE, Abi.EVENT, site, back)
    return found


def _openssl(elf: ElfFile, chooser: SiteChooser, symbols: Mapping[str, Symbol]) -> Finding:
    functions: dict[str, TlsFunction] = {}
    for plain_name, direction in (("SSL_read", Direction.READ), ("SSL_write", Direction.WRITE)):
        plain, extended = symbols[plain_name], symbols.get(plain_name + "_ex")
        own = _pair(chooser, plain, direction, Abi.COUNT, 3)
        also = _pair(chooser, extended, direction, Abi.FLAG, 4) if extended is not None else None
        if extended is not None and (own is None or not _cheap(own) or also is None or not _cheap(also)):
            merged = _behind_both(chooser, plain, extended, direction)
            if merged is not None:
                functions[plain_name] = functions[extended.name] = merged
                continue
        if own is not None:
            functions[plain_name] = own
        # LibreSSL makes the one of the other: two probes would count the bytes twice.
        nested = extended is not None and any(call.target == plain.address for call in chooser.calls(extended))
        if also is not None and not nested:
            functions[also.name] = also
    if "SSL_sendfile" in symbols:
        sent = _pair(chooser, symbols["SSL_sendfile"], Direction.WRITE, Abi.SENDFILE, 4)
        if sent is not None and _cheap(sent):
            functions["SSL_sendfile"] = sent
    functions |= _events(chooser, symbols, _OPENSSL_EVENTS)
    boring = "SSL_CTX_set_grease_enabled" in symbols
    version = elf.find_text(_OPENSSL_VERSION).removeprefix("OpenSSL ") or _interface_version(elf, b"OPENSSL_")
    version = "" if boring else version
    kind = TlsKind.BORINGSSL if boring else TlsKind.OPENSSL
    return Finding(kind, version, functions, {"SSL_read", "SSL_write"} <= functions.keys())


def _cheap(function: TlsFunction) -> bool:
    return function.arguments.is_cheap and (function.returns is None or function.returns.is_cheap)


def _interface_version(elf: ElfFile, prefix: bytes) -> str:
    """The newest version of the interface that a library offers, by its symbol versions: at most as new as itself."""
    section = elf.section(".dynstr")
    newest: tuple[int, ...] = ()
    pattern = re.compile(re.escape(prefix) + rb"(\d{1,3})[._](\d{1,3})(?:[._](\d{1,3}))?")
    for _, piece in elf.slices(section.offset, section.size, overlap=32) if section is not None else ():
        for hit in pattern.finditer(piece):
            newest = max(newest, tuple(int(number) for number in hit.groups() if number))
    return ".".join(str(number) for number in newest[:2])  # the third number is the interface's, not the library's


def _behind_both(chooser: SiteChooser, plain: Symbol, extended: Symbol, direction: Direction) -> TlsFunction | None:
    """The function that both forms call, with the arguments and the return of the extended form.

    The extended form hands its own arguments on unchanged; the plain one calls the same address once, with a place of
    its own for the count. What returns to either is a flag, and the count stands where the fourth argument points.
    """
    called = [call.target for call in chooser.calls(plain)]
    for site in chooser.inner(extended, Need.RETURN, arguments=4):
        begins = {site.address, site.address - 4}  # behind endbr64
        if sum(target in begins for target in called) == 1:
            entry = replace(site, need=Need.ARGUMENTS, expected_price_us=chooser.prices.of(site.price, returns=False))
            return TlsFunction(extended.name, (plain.name, extended.name), direction, Abi.FLAG, entry, site)
    return None


def _gnutls(elf: ElfFile, chooser: SiteChooser, symbols: Mapping[str, Symbol]) -> Finding:
    # gnutls_record_send is gnutls_record_send2 without padding; the latter is seldom called by itself.
    names = {"gnutls_record_send": Direction.WRITE, "gnutls_record_recv": Direction.READ}
    functions = _plain(chooser, symbols, names) | _events(chooser, symbols, ("gnutls_deinit",))
    return Finding(TlsKind.GNUTLS, _interface_version(elf, b"GNUTLS_"), functions, names.keys() <= functions.keys())


def _nspr(chooser: SiteChooser, symbols: Mapping[str, Symbol]) -> Finding:
    names = {
        "PR_Read": Direction.READ, "PR_Recv": Direction.READ, "PR_Write": Direction.WRITE, "PR_Send": Direction.WRITE
    }  # fmt: skip
    functions = _plain(chooser, symbols, names, Abi.NSPR) | _events(chooser, symbols, ("PR_Close",))
    return Finding(TlsKind.NSS, "", functions, names.keys() <= functions.keys())


_GO_READ, _GO_WRITE = "crypto/tls.(*Conn).Read", "crypto/tls.(*Conn).Write"
_GO_COPIES = (("runtime.memmove", Abi.GO_COPY), ("bytes.(*Reader).Read", Abi.GO_READER))
_GO_SLICE = (0, 3, 1)  # rax, rbx, rcx: Go's internal ABI, cmd/compile/abi-internal.md


def _go(elf: ElfFile, chooser: SiteChooser) -> list[Finding]:
    build = golang.build_of(elf)
    version = build.version if build is not None else ""
    if elf.machine != "x86_64":
        return [Finding(TlsKind.GO, version, reason="Go programs are looked into on x86-64 only")]
    try:
        symbols = golang.find_functions(elf, [_GO_READ, _GO_WRITE, *(name for name, _ in _GO_COPIES)])
    except NotElfError as err:
        return [Finding(TlsKind.GO, version, reason=str(err))]
    if _GO_READ not in symbols and _GO_WRITE not in symbols:
        return []  # the linker left crypto/tls out: the program has no TLS
    functions: dict[str, TlsFunction] = {}
    for name, direction in ((_GO_READ, Direction.READ), (_GO_WRITE, Direction.WRITE)):
        site = chooser.choose_go(symbols[name], _GO_SLICE) if name in symbols else None
        if site is not None:
            functions[name] = TlsFunction(name, (name,), direction, Abi.GO_SLICE, site)
    copied = None
    for name, abi in _GO_COPIES:
        if copied is None and _GO_READ in symbols and name in symbols:
            copied = chooser.at_call(symbols[_GO_READ], symbols[name].address, _GO_SLICE, name)
            if copied is not None:
                functions[f"{_GO_READ}: copy"] = TlsFunction(
                    f"{_GO_READ}: copy", (_GO_READ,), Direction.READ, abi, copied
                )
    reason = (
        "" if copied is not None else "where crypto/tls hands plaintext to its reader was not found: reads are not seen"
    )
    return [
        Finding(TlsKind.GO, version, functions, visible=_GO_WRITE in functions and copied is not None, reason=reason)
    ]


def _rustls(elf: ElfFile, chooser: SiteChooser) -> list[Finding]:
    if not elf.has_static_symbols:
        return []
    received, sends = (elf.find_matching(parts[-1], parts, limit=8) for parts in (_RUST_RECEIVED, _RUST_SENDS))
    version = elf.find_text(_RUSTLS_VERSION).removeprefix("rustls-")
    if not received and not sends and not version:
        return []
    reason = _rustls_unknown(elf, chooser, received, sends, version)
    if reason:
        return [Finding(TlsKind.RUSTLS, version, reason=reason)]
    functions: dict[str, TlsFunction] = {}
    entry = chooser.choose(received[0], Need.ARGUMENTS, arguments=2)
    if entry is not None:
        functions["received"] = TlsFunction("received", ("received",), Direction.READ, Abi.RUST_PAYLOAD, entry)
    written = _pair(chooser, sends[0], Direction.WRITE, Abi.RUST_CHUNKS, 2)
    if written is not None:
        functions["sends"] = replace(written, name="sends", covers=("sends",))
    return [Finding(TlsKind.RUSTLS, version, functions, visible=len(functions) == 2)]


def _rustls_unknown(
    elf: ElfFile, chooser: SiteChooser, received: Sequence[Symbol], sends: Sequence[Symbol], version: str
) -> str:
    """Why plaintext of rustls cannot be seen where it passes in the versions that are known; empty if it can."""
    if not received or not sends:
        missing = " and ".join(name for name, found in (("reads", received), ("writes", sends)) if not found)
        return f"the compiler left no function of its own that {missing}"
    if len(received) > 1 or len(sends) > 1:
        return "several versions of rustls are linked in"
    if not version.startswith(_RUST_LAYOUTS):
        said = f"of version {version}" if version else "of a version that the file does not tell"
        return f"it is {said}, and its types are known for {', '.join(_RUST_LAYOUTS)} only"
    handlers = elf.find_matching(_RUST_TRAFFIC[2], _RUST_TRAFFIC, limit=16)
    apart = [
        handler for handler in handlers if all(call.target != received[0].address for call in chooser.calls(handler))
    ]
    if apart or not handlers:
        return "the compiler put what reads into its callers, in part or in whole"
    return ""


def _static_without_symbols(elf: ElfFile) -> list[Finding]:
    mark = elf.holds(_STATIC_MARKS)
    if not mark:
        return []
    kind, name = _STATIC_MARKS[mark]
    version = ""
    if kind is TlsKind.OPENSSL:
        version = elf.find_text(_OPENSSL_VERSION).removeprefix("OpenSSL ")
    elif kind is TlsKind.RUSTLS:
        version = elf.find_text(_RUSTLS_VERSION).removeprefix("rustls-")
    reason = f"{name} is linked in and its symbols are stripped: where plaintext passes cannot be found"
    return [Finding(kind, version, reason=reason)]
