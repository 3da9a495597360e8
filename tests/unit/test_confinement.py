"""The filter in a process of its own, by the kernel itself; and its tables against the C library's headers."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys

import pytest

from onlooker import confinement

TRY = """
import ctypes, os, sys, threading
from onlooker import confinement
ready, go, said = threading.Event(), threading.Event(), []
def other():
    ready.set(); go.wait()
    try: os.execv("/bin/true", ["true"])
    except OSError as err: said.append(err.errno)
thread = threading.Thread(target=other); thread.start(); ready.wait()
assert confinement.confine() == "", confinement.confine()
go.set(); thread.join()
for call in (lambda: os.execv("/bin/true", ["true"]), lambda: os.setuid(os.getuid()), lambda: os.chroot("/")):
    try: call()
    except OSError as err: said.append(err.errno)
open("/proc/self/status").read(); os.getpid(); threading.Thread(target=os.getpid).start()
print(said, [l.split()[1] for l in open("/proc/self/status") if l.startswith(("NoNewPrivs", "Seccomp:"))])
"""


@pytest.mark.skipif(platform.machine() not in confinement.MACHINES, reason="no table for this machine")
def test_all_threads_are_forbidden_to_start_programs() -> None:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[1, 1, 1, 1] ['1', '2']", done


@pytest.mark.parametrize("machine", confinement.MACHINES)
def test_every_jump_leads_to_an_end(machine: str) -> None:
    code = confinement.filter_of(machine)
    steps = list(struct.iter_unpack("HBBI", code))
    allow, deny = len(steps) - 2, len(steps) - 1
    assert [steps[at][0] for at in (allow, deny)] == [0x06, 0x06]
    targets = {at + 1 + step[1] for at, step in enumerate(steps) if step[0] in (0x15, 0x35) and at != 1}
    assert targets == {deny}
    assert 2 + steps[1][2] == deny
    assert confinement.filter_of(machine) == code


def test_the_numbers_are_those_of_the_headers() -> None:
    machine = platform.machine()
    source = "#include <sys/syscall.h>\n" + "".join(f"{name} SYS_{name}\n" for name in confinement.MACHINES[machine][1])
    try:
        done = subprocess.run(["cc", "-E", "-P", "-xc", "-"], input=source, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler to ask")
    found = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    wrong = {
        name: number for name, number in confinement.MACHINES[machine][1].items() if found.get(name) != str(number)
    }
    assert wrong == {}
