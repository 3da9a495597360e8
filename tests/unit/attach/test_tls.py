"""Which TLS a process has: maps files as text, real libraries, real processes."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onlooker.attach.elf import ElfFile
from onlooker.attach.maps import MappedFile, mapped_files, open_paths, parse_maps
from onlooker.attach.sites import Place
from onlooker.attach.tls import Abi, Direction, TlsCatalog, TlsKind, examine

_LIBSSL = next(iter(glob.glob("/usr/lib/*/libssl.so.3")), "")
_GNUTLS = next(iter(glob.glob("/usr/lib/*/libgnutls.so.30")), "")
_NSPR = next(iter(glob.glob("/usr/lib/*/libnspr4.so")), "")

_MAPS = b"""\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 100                        /usr/bin/program
55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 100                        /usr/bin/program
7f0000000000-7f0000001000 r-xp 00000000 fe:00 200                        /usr/lib/libssl.so.3 (deleted)
7f0000002000-7f0000003000 r-xp 00002000 fe:00 200                        /usr/lib/libssl.so.3 (deleted)
7f0000004000-7f0000005000 rw-p 00000000 00:00 0
7f0000006000-7f0000007000 r-xp 00000000 fe:00 300                        /opt/with space/lib\\012x.so
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0                          [vdso]
broken line
7f0000008000 r-xp 00000000 fe:00 400 /no/range
"""


def test_maps_give_each_executable_file_once() -> None:
    assert parse_maps(_MAPS) == [
        MappedFile("/usr/bin/program", 100, "fe:00", 0x55D0C0001000, 0x55D0C0002000, False),
        MappedFile("/usr/lib/libssl.so.3", 200, "fe:00", 0x7F0000000000, 0x7F0000001000, True),
        MappedFile("/opt/with space/lib\nx.so", 300, "fe:00", 0x7F0000006000, 0x7F0000007000, False),
    ]


@given(st.binary(max_size=400))
def test_any_text_is_read_without_harm(text: bytes) -> None:
    assert all(file.inode for file in parse_maps(text))


def test_a_path_with_a_carriage_return_makes_no_second_line() -> None:
    """The kernel escapes line feeds alone; what follows would be a file that the process has not mapped."""
    line = b"00400000-00401000 r-xp 00000000 fe:01 77 /tmp/a"
    forged = b"00500000-00501000 r-xp 00000000 fe:01 78 /usr/lib/libssl.so.3"
    (file,) = parse_maps(line + b"\r" + forged + b"\n")
    assert file.inode == 77


def test_deleted_files_are_only_reached_through_their_mapping() -> None:
    deleted = MappedFile("/lib/a.so", 1, "fe:00", 0x1000, 0x2000, True)
    assert list(open_paths(7, deleted)) == ["/proc/7/map_files/1000-2000"]


def test_a_process_that_is_gone_has_nothing() -> None:
    assert mapped_files(2**22 + 1) == []
    assert TlsCatalog().libraries(2**22 + 1) == []


@pytest.mark.skipif(not _LIBSSL, reason="no OpenSSL 3")
def test_openssl_merges_both_forms_and_is_cheap() -> None:
    with ElfFile(_LIBSSL) as elf:
        (finding,) = examine(elf)
    assert (finding.kind, finding.visible, finding.version[:1]) == (TlsKind.OPENSSL, True, "3")
    data = [f for f in finding.functions.values() if f.direction is not Direction.NONE]
    assert {"SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex"} <= finding.functions.keys()
    for function in data:
        assert function.arguments.is_cheap, function
        assert function.returns is not None
        assert function.returns.is_cheap, function
        if function.arguments.place is Place.INNER:
            assert function.abi is Abi.FLAG
            assert len(function.covers) == 2


@pytest.mark.skipif(not _GNUTLS, reason="no GnuTLS")
def test_gnutls() -> None:
    with ElfFile(_GNUTLS) as elf:
        (finding,) = examine(elf)
    assert (finding.kind, finding.visible) == (TlsKind.GNUTLS, True)
    assert finding.functions["gnutls_record_send"].abi is Abi.COUNT
    assert finding.functions["gnutls_record_recv"].arguments.is_cheap


@pytest.mark.skipif(not _NSPR, reason="no NSPR")
def test_nspr_is_followed_where_its_descriptors_carry_tls() -> None:
    with ElfFile(_NSPR) as elf:
        (finding,) = examine(elf)
    assert finding.kind is TlsKind.NSS
    assert {"PR_Read", "PR_Write", "PR_Send", "PR_Recv"} <= finding.functions.keys()
    assert finding.visible
    assert {function.abi for name, function in finding.functions.items() if name != "PR_Close"} == {Abi.NSPR}


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_node_has_its_own_openssl() -> None:
    with ElfFile(os.path.realpath(shutil.which("node") or "")) as elf:
        findings = {finding.kind: finding for finding in examine(elf)}
    # A distribution's node may use the shared library instead: then this file has none.
    if TlsKind.OPENSSL in findings:
        assert findings[TlsKind.OPENSSL].visible
        assert {"SSL_read", "SSL_write"} <= findings[TlsKind.OPENSSL].functions.keys()


def _compile(directory: Path, name: str, source: str, *flags: str) -> Path:
    text = directory / f"{name}.c"
    text.write_text(source)
    built = directory / name
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", *flags, "-o", built, text], check=True)
    return built


def test_static_tls_without_symbols_is_named_with_the_reason(tmp_path: Path) -> None:
    built = _compile(
        tmp_path,
        "libfoo.so",
        'const char *file(void) { return "../ssl/ssl_lib.c"; } const char *v(void) { return "OpenSSL 3.1.4 24 Oct"; }',
    )
    with ElfFile(built) as elf:
        (finding,) = examine(elf)
    assert (finding.kind, finding.visible, finding.version) == (TlsKind.OPENSSL, False, "3.1.4")
    assert "stripped" in finding.reason
    assert not finding.functions


_BODY = "int {0}(void *s, void *b, int n) {{ extern int printf(const char *, ...); return printf({1}) ? n : 0; }}\n"


def test_boringssl_is_told_by_what_only_it_has(tmp_path: Path) -> None:
    names = ["SSL_read", "SSL_write", "SSL_CTX_set_grease_enabled"]
    built = _compile(tmp_path, "libb.so", "".join(_BODY.format(name, '"%p%p", s, b') for name in names))
    with ElfFile(built) as elf:
        (finding,) = examine(elf)
    assert (finding.kind, finding.visible) == (TlsKind.BORINGSSL, True)


_RUST_LEGACY = {
    "received": "_ZN6rustls12common_state11CommonState23take_received_plaintext17h0123456789abcdefE",
    "sends": "_ZN6rustls12common_state11CommonState20send_appdata_encrypt17h0123456789abcdefE.llvm.123",
    "handle": "_ZN99_$LT$rustls..server..tls13..ExpectTraffic$u20$as$u20$rustls..common_state..State$GT$6handle17h01E",
}
_RUST_V0 = {
    "received": "_RNvMs_NtCs1_6rustls12common_stateNtB4_11CommonState23take_received_plaintext",
    "sends": "_RNvMs_NtCs1_6rustls12common_stateNtB4_11CommonState20send_appdata_encrypt",
    "handle": "_RNvXs_NtNtCs1_6rustls6server5tls13NtB4_13ExpectTrafficINtNtB6_12common_state5StateE6handle",
}


def _rust_program(
    directory: Path, names: dict[str, str], *, version: str = "rustls-0.23.46", inlined: bool = False
) -> Path:
    """A file with the functions of rustls under their mangled names, and a handler that calls what receives."""
    body = '{{ extern int printf(const char *, ...); return printf("%p%p", s, b); }}\n'
    source = f'const char *version(void) {{ return "/registry/{version}/src/conn.rs"; }}\n'
    for name, mangled in names.items():
        called = "received(s, b)" if not inlined else "0"
        text = body if name != "handle" else f"{{{{ return {called} + 1; }}}}\n"
        source += f'int {name}(void *s, void *b) __asm__("{mangled}");\n'
        source += f"int {name}(void *s, void *b) " + text.format()
    return _compile(directory, "librust.so", source, "-fno-inline", "-Wl,-Bsymbolic", "-fno-semantic-interposition",
                    "-fno-optimize-sibling-calls")  # fmt: skip


@pytest.mark.parametrize("names", [_RUST_LEGACY, _RUST_V0], ids=["legacy", "v0"])
def test_rustls_is_seen_where_its_plaintext_passes(tmp_path: Path, names: dict[str, str]) -> None:
    with ElfFile(_rust_program(tmp_path, names)) as elf:
        (finding,) = examine(elf)
    assert (finding.kind, finding.version, finding.visible, finding.reason) == (TlsKind.RUSTLS, "0.23.46", True, "")
    told = {name: (function.abi, function.direction) for name, function in finding.functions.items()}
    assert told == {
        "received": (Abi.RUST_PAYLOAD, Direction.READ),
        "sends": (Abi.RUST_CHUNKS, Direction.WRITE),
    }
    assert finding.functions["received"].returns is None
    assert finding.functions["sends"].returns is not None


@pytest.mark.parametrize(
    ("missing", "version", "inlined", "reason"),
    [
        ("sends", "rustls-0.23.46", False, "no function of its own that writes"),
        ("received", "rustls-0.23.46", False, "no function of its own that reads"),
        ("handle", "rustls-0.23.46", False, "into its callers"),
        ("", "rustls-0.23.46", True, "into its callers"),
        ("", "rustls-0.22.4", False, "of version 0.22.4"),
        ("", "rustls", False, "of a version that the file does not tell"),
    ],
)
def test_rustls_that_is_not_as_known_is_named_with_the_reason(
    tmp_path: Path, missing: str, version: str, inlined: bool, reason: str
) -> None:
    names = {name: mangled for name, mangled in _RUST_LEGACY.items() if name != missing}
    if missing == "received":
        names.pop("handle")
    with ElfFile(_rust_program(tmp_path, names, version=version, inlined=inlined)) as elf:
        (finding,) = examine(elf)
    assert (finding.kind, finding.visible, dict(finding.functions)) == (TlsKind.RUSTLS, False, {})
    assert reason in finding.reason


def test_a_form_made_of_the_other_is_not_probed_twice(tmp_path: Path) -> None:
    source = "".join(_BODY.format(name, '"%p%p", s, b') for name in ("SSL_read", "SSL_write")) + "".join(
        f"int {name}_ex(void *s, void *b, unsigned long n, unsigned long *m) "
        f"{{ int r = {name}(s, b, (int)n); *m = r; return r > 0; }}\n"
        for name in ("SSL_read", "SSL_write")
    )
    built = _compile(tmp_path, "libl.so", source, "-fno-inline", "-Wl,-Bsymbolic", "-fvisibility=default",
                     "-fno-semantic-interposition")  # fmt: skip
    with ElfFile(built) as elf:
        (finding,) = examine(elf)
    assert set(finding.functions) == {"SSL_read", "SSL_write"}


def _child(code: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", code + "\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def _end(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    child.wait(10)
    child.stdout.close()


def test_a_library_that_is_loaded_later_is_found_by_asking_again() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.readline(); import ssl; "
         "print(2, flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        catalog = TlsCatalog()
        child.stdout.readline()
        assert catalog.libraries(child.pid) == []
        child.stdin.write("\n")
        child.stdin.flush()
        child.stdout.readline()
        (library,) = catalog.libraries(child.pid)
        assert library.kind is TlsKind.OPENSSL
        assert library.visible
        assert library.inode == os.stat(library.open_path).st_ino
        assert len(library.probes()) < len(library.functions)
    finally:
        _end(child)


@pytest.mark.skipif(not _LIBSSL, reason="no OpenSSL 3")
def test_a_deleted_library_is_still_read(tmp_path: Path) -> None:
    copy = tmp_path / "libssl.so.3"
    shutil.copy(_LIBSSL, copy)
    inode = copy.stat().st_ino
    child = _child(f"import ctypes; ctypes.CDLL({str(copy)!r})")
    try:
        copy.unlink()
        copy.write_bytes(b"something else")
        (library,) = [found for found in TlsCatalog().libraries(child.pid) if "tmp" in found.path]
        assert library.visible
        assert library.inode == inode
    except ValueError:
        pytest.skip("map_files needs CAP_CHECKPOINT_RESTORE")
    finally:
        _end(child)
