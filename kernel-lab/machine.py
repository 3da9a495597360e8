"""The machine: a kernel in QEMU over this machine's own files, one command in it, its output and its exit status."""

from __future__ import annotations

import argparse
import fcntl
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import BinaryIO

from debian_kernels import CACHE, available, busybox, die, get_kernel, matching, say

BOOT_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay")
GUEST = Path(__file__).resolve().parent / "guest"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
BEGAN = time.monotonic()

EPILOGUE = """\
  vmrun --kernel 6.1 -- ./run-tests -v                    several words: a program and its arguments
  vmrun --kernel 5.10 -- 'uname -r; ls /sys/kernel/btf'   one word: a shell command line
  vmrun --list                                            the kernels that can be had
"""

# ---- the initramfs: busybox, the few modules that reach the files, and the guest's script ----


def boot_modules(base: Path) -> list[Path]:
    """The modules that the boot needs and the kernel does not have built in, in load order."""
    lines = (base / "modules.dep").read_text().splitlines()
    needs = {path: rest.split() for path, colon, rest in (line.partition(":") for line in lines) if colon}
    order: list[str] = []

    def add(path: str) -> None:
        for needed in needs[path]:
            add(needed)
        if path not in order:
            order.append(path)

    for path in needs:
        if Path(path).name.split(".ko")[0].replace("-", "_") in BOOT_MODULES:
            add(path)
    return [base / path for path in order]


def archive(files: list[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the format newc: names, modes and contents.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
    """
    out = bytearray()
    for inode, (name, mode, data) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        raw = name.encode() + b"\0"
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + raw
        for part in (head, data):
            out += part + bytes(-len(part) % 4)
    return bytes(out)


def initramfs(base: Path, command: str, shares: list[str]) -> bytes:
    """What the kernel unpacks and starts."""
    files = [(directory, 0o40755, b"") for directory in ("bin", "mods", "dev")]
    files += [
        ("bin/busybox", 0o100755, busybox().read_bytes()),
        ("init", 0o100755, GUEST.read_bytes()),
        ("guest", 0o100755, GUEST.read_bytes()),
        ("command", 0o100644, command.encode()),
        ("modules", 0o100644, f"{base}\n".encode()),
        ("shares", 0o100644, "".join(f"rw{i} {path}\n" for i, path in enumerate(shares)).encode()),
    ]
    for i, path in enumerate(boot_modules(base)):
        data = path.read_bytes()
        files.append((f"mods/{i:02}.ko", 0o100644, lzma.decompress(data) if path.suffix == ".xz" else data))
    return archive(files)


# ---- the machine ----


def has_kvm() -> bool:
    """Whether KVM can be used: /dev/kvm without vmx or svm has been seen, and ran no stock kernel."""
    flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return bool(flags and {"vmx", "svm"} & set(flags[1].split())) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def _share(place: Path, tag: str, source: str, children: list[subprocess.Popen[bytes]]) -> list[str]:
    """Start a virtiofsd for ``source``; "root" is shown through a read-only bind mount that only it sees."""
    program = next(filter(os.path.exists, VIRTIOFSD), None)
    if program is None:
        die("needs virtiofsd (Debian: qemu-system-common)")
    socket, log, mount = place / f"{tag}.sock", place / f"{tag}.log", place / "ro"
    shown, cache = (mount, "always") if tag == "root" else (source, "auto")
    serve = [program, f"--socket-path={socket}", "-o", f"source={shown},sandbox=chroot,cache={cache}"]
    if tag == "root":
        mount.mkdir(exist_ok=True)
        remount = f"mount --bind {source} {mount} && mount -o remount,bind,ro {mount}"
        serve = ["unshare", "-m", "sh", "-c", f"{remount} && exec {shlex.join(serve)}"]
    with log.open("wb") as out:
        children.append(subprocess.Popen(serve, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT))
    while not socket.exists():
        if children[-1].poll() is not None:
            die("virtiofsd: " + log.read_text(errors="replace")[-800:])
        time.sleep(0.01)
    return ["-chardev", f"socket,id={tag},path={socket}", "-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]


def _pump(fd: int, to: BinaryIO) -> None:
    """Copy what the guest writes to one of our own outputs; go on reading if nobody takes it."""
    while data := os.read(fd, 65536):
        try:
            to.write(data)
            to.flush()
        except BrokenPipeError:
            pass


class Machine:
    """One run of a kernel.

    Args:
        options: The command line.
        accelerator: Of QEMU: "kvm" or "tcg".
        version: Of the kernel.
        home: Where the kernel is.
        shares: Directories that are writable inside.
        place: A directory for sockets and logs.
    """

    def __init__(
        self, options: argparse.Namespace, accelerator: str, version: str, home: Path, shares: list[str], place: Path
    ) -> None:
        self._options, self._accelerator, self._version = options, accelerator, version
        self._home, self._shares, self._place = home, shares, place
        self._console = Path(options.console).absolute() if options.console else place / "console"
        self._children: list[subprocess.Popen[bytes]] = []
        self._pipes = {name: os.pipe() for name in ("out", "err", "ctl")}
        self.up = False
        self.status: int | None = None

    def run(self) -> None:
        """Boot, run the command, power off; `up` and `status` tell what came of it."""
        threads = [
            threading.Thread(target=self._control),
            threading.Thread(target=_pump, args=(self._pipes["out"][0], sys.stdout.buffer)),
            threading.Thread(target=_pump, args=(self._pipes["err"][0], sys.stderr.buffer)),
        ]
        try:
            command = self._qemu()
            for tag, source in [("root", "/"), *((f"rw{i}", path) for i, path in enumerate(self._shares))]:
                command += _share(self._place, tag, source, self._children)
            writers = [write for _, write in self._pipes.values()]
            self._children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=writers))
            for thread in threads:
                thread.start()
            self._wait(self._children[-1])
        finally:
            for child in reversed(self._children):
                child.kill()
                child.wait()
            for _, write in self._pipes.values():
                os.close(write)
        for thread in threads:
            thread.join()
        if self.status is None:
            end = self._console.read_text(errors="replace")[-3000:] if self._console.exists() else "(none)"
            say("the machine stopped before the command ended; its console's end:\n" + end)

    def _qemu(self) -> list[str]:
        options, accelerator = self._options, self._accelerator
        command = [
            "qemu-system-x86_64", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max,la57=off",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-smp", str(options.cpus), "-m", options.mem,
            "-object", f"memory-backend-memfd,id=m,size={options.mem},share=on", "-machine", "q35,memory-backend=m",
            "-kernel", f"{self._home}/vmlinuz", "-initrd", f"{self._place}/initrd", "-serial", f"file:{self._console}",
            "-append", f"console=ttyS0 panic=-1 quiet {options.append}", "-device", "virtio-rng-pci",
            "-netdev", "user,id=n,restrict=on", "-device", "virtio-net-pci,netdev=n,romfile=",
            "-device", "virtio-serial-pci",
        ]  # fmt: skip
        if options.count:
            command += ["-icount", "shift=1,sleep=off"]
        for i, (name, (_, write)) in enumerate(self._pipes.items()):
            command += ["-add-fd", f"fd={write},set={i}", "-chardev", f"file,id={name},path=/dev/fdset/{i},append=on"]
            command += ["-device", f"virtserialport,chardev={name},name={name}"]
        return command

    def _control(self) -> None:
        with open(self._pipes["ctl"][0]) as lines:
            for words in map(str.split, lines):
                if words[0] == "ready":
                    self.up = True
                    counting = ", counting instructions" if self._options.count else ""
                    say(
                        f"kernel {self._version}, accelerator {self._accelerator}, {self._options.cpus} CPUs, "
                        f"{self._options.mem}{counting}; up after {time.monotonic() - BEGAN:.1f} s"
                    )
                elif words[0] == "rc":
                    self.status = int(words[1])

    def _wait(self, qemu: subprocess.Popen[bytes]) -> None:
        end, kvm_end = BEGAN + self._options.timeout, time.monotonic() + 60
        while qemu.poll() is None and time.monotonic() < end:
            trying = self._accelerator == "kvm" and self._options.accel == "auto" and not self.up
            if trying and time.monotonic() > kvm_end:
                return
            time.sleep(0.02)
        if qemu.poll() is None:
            self.status = 124 if self.status is None else self.status
            booting = "" if self.up else f", still booting with {self._accelerator}"
            say(f"timed out after {self._options.timeout:g} s{booting}")


# ---- the command line ----


def parser() -> argparse.ArgumentParser:
    """Of ``vmrun``."""
    made = argparse.ArgumentParser(
        prog="vmrun",
        description="Run a command as root on another Debian kernel, in QEMU, over this machine's own files.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--kernel", default="6.1", help="5.10, 6.1, 6.12, 6.18, 7.3, ... or more of a name of --list's")
    made.add_argument("--flavour", choices=["cloud", "generic"], default="cloud")
    made.add_argument("--cpus", type=int, default=2)
    made.add_argument("--mem", default="2G")
    made.add_argument("--rw", action="append", default=[], metavar="DIR", help="shared, writable, at the same path")
    made.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    made.add_argument(
        "--timeout", type=float, default=300, help="seconds, boot included (default 300); then status 124"
    )
    made.add_argument("--accel", choices=["auto", "kvm", "tcg"], default="auto")
    made.add_argument("--count", action="store_true", help="the clock counts instructions: 1 CPU, repeatable")
    made.add_argument("--append", default="", help="more words for the kernel's command line")
    made.add_argument("--console", metavar="FILE", help="keep the kernel's console log here")
    made.add_argument("--update", action="store_true", help="look for newer kernels")
    made.add_argument("--list", action="store_true", help="the kernels that can be had")
    made.add_argument("command", nargs="*")
    return made


def command_text(words: list[str], environment: list[str], directory: str) -> str:
    """What the shell inside runs: one word is a command line, several are a program and its arguments."""
    line = words[0] if len(words) == 1 else shlex.join(words)
    exports = "".join(f"export {shlex.quote(setting)}\n" for setting in environment)
    return f"{exports}cd {shlex.quote(directory)} 2>/dev/null || cd /\n{line}\n"


def main() -> int:
    """Run the command line; gives the exit status."""
    options = parser().parse_args()
    if options.count:
        options.cpus, options.accel = 1, "tcg"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if options.list:
            print("\n".join(matching(available(update=options.update), "", options.flavour)))
            return 0
        if not options.command:
            parser().error("no command")
        if os.geteuid() or not shutil.which("qemu-system-x86_64"):
            die("needs root and qemu-system-x86_64 (Debian: qemu-system-x86)")
        if CACHE.stat().st_dev != Path("/").stat().st_dev:
            die("the cache must be on the root file system: set XDG_CACHE_HOME")
        version, home = get_kernel(options.kernel, options.flavour, update=options.update)
        busybox()
    command = command_text(options.command, options.env, str(Path.cwd()))
    shares = [os.path.realpath(path) for path in options.rw]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))
    tries = [options.accel] if options.accel != "auto" else ["kvm", "tcg"] if has_kvm() else ["tcg"]
    status: int | None = None
    for accelerator in tries:
        with tempfile.TemporaryDirectory(prefix="vmrun-") as directory:
            place = Path(directory)
            (place / "initrd").write_bytes(initramfs(home / "lib/modules" / version, command, shares))
            machine = Machine(options, accelerator, version, home, shares, place)
            machine.run()
        status = machine.status
        if machine.up or status is not None:
            break
    return 125 if status is None else status
