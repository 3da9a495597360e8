"""Hostile ELF files: whatever a process maps as a library is read, so none of it may raise, hang or take memory."""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    import driver

    driver.begin()

from onlooker.attach import golang, tls, x86
from onlooker.attach.elf import ElfFile, NotElfError
from onlooker.discover.elf import read_facts

NAMES = ("SSL_write", "SSL_read", "gnutls_record_send", "crypto/tls.(*Conn).Write")
LONGEST_S = 5.0
"""For a file of 64 KiB: a thousand times what a well-formed one takes."""
_FILE = os.memfd_create("fuzz-elf")


def one_input(data: bytes) -> None:
    """Everything that is asked of a library and of a program."""
    began = time.process_time()
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, data, 0)
    facts = read_facts(f"/proc/self/fd/{_FILE}")
    assert len(facts.version) < 1000
    try:
        with ElfFile(_FILE) as elf:
            tls.examine(elf)
            golang.build_of(elf)
            symbols = [*elf.find_functions(NAMES).values(), *elf.find_matching(b"rustls", [b"write"])]
            assert len(elf.build_id) <= 2 * len(data)
            for symbol in symbols[:8]:
                code = elf.code(symbol.address, min(symbol.size, 4096))
                assert sum(one.end - one.address for one in x86.walk(code, symbol.address)) <= len(code)
    except NotElfError:
        pass
    except x86.UnknownInstructionError:
        pass
    assert time.process_time() - began < LONGEST_S, f"{len(data)} bytes took too long"


if __name__ == "__main__":
    driver.main("elf", one_input, sys.argv[1:])
