"""What of the kernel lab can be seen without booting; tests/kernels boots."""

import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[3] / "kernel-lab"
sys.path.insert(0, str(LAB))
import debian_kernels as kernels  # noqa: E402
import machine  # noqa: E402

NAMES = [
    "5.10.0-46-cloud-amd64",
    "5.10.0-46-amd64",
    "5.10.0-46-rt-amd64",
    "6.1.0-9-cloud-amd64",
    "6.1.0-56-cloud-amd64",
    "6.12.117+deb13-cloud-amd64",
    "6.12.117+deb13-amd64",
    "6.1",
    "amd64",
]


@pytest.mark.parametrize(
    ("wanted", "flavour", "found"),
    [
        ("6.1", "cloud", ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64"]),  # not 6.12, and 9 before 56
        ("6.12", "cloud", ["6.12.117+deb13-cloud-amd64"]),
        ("6.12", "generic", ["6.12.117+deb13-amd64"]),
        ("5.10.0-46", "generic", ["5.10.0-46-amd64"]),
        ("4.19", "cloud", []),
    ],
)
def test_a_short_name_finds_its_kernels(wanted: str, flavour: str, found: list[str]) -> None:
    assert kernels.matching(NAMES, wanted, flavour) == found


ONE_LINE = """\
# a comment
deb [arch=amd64 signed-by=/x.gpg] http://mirror.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
deb-src http://mirror.example/debian bookworm main
"""
STANZAS = """\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
"""


@pytest.mark.parametrize("text", [ONE_LINE, STANZAS])
def test_both_formats_of_source_lists_are_read(text: str) -> None:
    found = kernels.mirrors(text)
    assert found["bookworm"] == "http://mirror.example/debian"
    assert found["bookworm-security"] == "http://security.example/debian-security"


def test_kernels_come_from_the_mirrors_of_this_machine_alone() -> None:
    lines = kernels.source_lines(kernels.mirrors(STANZAS), "bookworm")
    hosts = {line.split()[3] for line in lines}
    assert hosts == {"http://mirror.example/debian", "http://security.example/debian-security"}
    assert {line.split()[4] for line in lines} == {*kernels.SUITES, *kernels.SECURITY}


def test_without_security_updates_there_are_none() -> None:
    lines = kernels.source_lines({"bookworm": "http://mirror.example/debian"}, "bookworm")
    assert len(lines) == len(kernels.SUITES)


def test_no_mirror_is_the_machines_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        kernels.source_lines({}, "bookworm")
    assert stop.value.code == 125
    assert "no Debian mirror" in capsys.readouterr().err


def test_modules_come_after_those_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "kernel/virtiofs.ko.xz: kernel/fuse.ko.xz\nkernel/fuse.ko.xz:\nkernel/other.ko.xz: kernel/fuse.ko.xz\n"
        "kernel/virtio-pci.ko.xz: kernel/virtio_ring.ko.xz\nkernel/virtio_ring.ko.xz:\n"
    )
    names = [path.name for path in machine.boot_modules(tmp_path)]
    assert names == ["fuse.ko.xz", "virtiofs.ko.xz", "virtio_ring.ko.xz", "virtio-pci.ko.xz"]


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio to read the archive with")
def test_the_archive_is_one_for_cpio(tmp_path: Path) -> None:
    data = lzma.compress(b"module")
    made = machine.archive([("bin", 0o40755, b""), ("bin/x", 0o100755, b"abc"), ("m.ko", 0o100644, data)])
    subprocess.run(["cpio", "-id", "--quiet"], input=made, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/x").read_bytes() == b"abc"
    assert (tmp_path / "bin/x").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "m.ko").read_bytes() == data


@pytest.mark.parametrize("size", range(6))
def test_every_part_of_the_archive_is_aligned(size: int) -> None:
    made = machine.archive([("n" * (size + 1), 0o100644, b"d" * size)])
    assert len(made) % 4 == 0
    assert made.count(b"070701") == 2
    assert made.index(b"070701", 6) % 4 == 0


def run_text(words: list[str], environment: list[str], directory: str) -> str:
    text = machine.command_text(words, environment, directory)
    return subprocess.run(["bash"], input=text, capture_output=True, text=True, check=True).stdout


def test_several_words_are_a_program_and_its_arguments(tmp_path: Path) -> None:
    assert run_text(["echo", "a  b", "$HOME"], [], str(tmp_path)) == "a  b $HOME\n"


def test_one_word_is_a_command_line_in_the_callers_directory(tmp_path: Path) -> None:
    assert run_text(['echo "$N"; pwd'], ["N=it's 3"], str(tmp_path)) == f"it's 3\n{tmp_path}\n"


def test_the_command_line_explains_itself() -> None:
    done = subprocess.run([LAB / "vmrun", "--help"], capture_output=True, text=True, check=True)
    assert "--count" in done.stdout
