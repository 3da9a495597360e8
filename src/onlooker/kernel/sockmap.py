"""Whether a socket in a sockmap still tells its owner that there is something to read: found by an experiment.

Since Linux commit 929e30f93125 ("bpf, sockmap: Fix FIONREAD for sockmap"; 6.6.128, 6.12.75, 6.18.14, 6.19 and backports
of distributions) FIONREAD is answered for such a socket from the sockmap's own queue, which stays empty without a
verdict program: servers that ask before they read hang.  Only sockets of this function take part, and all is gone
when it returns.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import struct
import termios
from contextlib import ExitStack
from typing import Final

from onlooker.errors import AgentError
from onlooker.kernel import uprobe

_MAP_CREATE, _MAP_UPDATE = 0, 2  # enum bpf_cmd
_SOCKHASH: Final = 18  # enum bpf_map_type
_SENT: Final = b"hello"
_WAIT_MS: Final = 500


def readable_in_sockmap() -> tuple[bool | None, str]:
    """Put one end of a private connection into a sockmap, send to it, and ask what there is to read.

    Returns:
        True if the socket tells the truth, False if not, None if it could not be tried; and what was found.
    """
    try:
        kernel = uprobe._Kernel()
    except AgentError as err:
        return None, str(err)
    with ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            listener.settimeout(2.0)
            sender = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=2.0))
            receiver = stack.enter_context(listener.accept()[0])
            receiver.setblocking(False)
            sockets = kernel.bpf(_MAP_CREATE, struct.pack("<IIIII52x", _SOCKHASH, 4, 8, 1, 0))
            stack.callback(os.close, sockets)
            _put(kernel, sockets, receiver)
            sender.sendall(_SENT)
        except OSError as err:
            return None, f"not tried: {err.strerror or err}"
        poll = select.poll()
        poll.register(receiver, select.POLLIN)
        woken = bool(poll.poll(_WAIT_MS))
        waiting = array.array("i", [-1])
        fcntl.ioctl(receiver, termios.FIONREAD, waiting)
        try:
            got = receiver.recv(len(_SENT))
        except OSError as err:
            got = b""
            woken = woken and err.errno is None
    if woken and got == _SENT and waiting[0] == len(_SENT):
        return True, "what is readable is told"
    said = f"of {len(_SENT)} bytes that arrived it tells {waiting[0]}"
    return False, said if woken else f"{said}, and its owner is not woken"


def _put(kernel: uprobe._Kernel, sockets: int, one: socket.socket) -> None:
    """``sockets[0] = one``."""
    key, value = array.array("I", [0]), array.array("Q", [one.fileno()])
    # union bpf_attr: map_fd, key, value, flags
    kernel.bpf(_MAP_UPDATE, struct.pack("<I4xQQQ", sockets, key.buffer_info()[0], value.buffer_info()[0], 0))
