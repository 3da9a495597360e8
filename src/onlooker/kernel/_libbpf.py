"""Raw signatures of the libbpf functions in use.  Nothing is loaded before the first call of `library`."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
from collections.abc import Callable
from ctypes import CDLL, CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from typing import Any

from onlooker.errors import LoadError

PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_set_print": (c_void_p, [PRINT]),
    "bpf_object__open_mem": (c_void_p, [c_char_p, c_size_t, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__section_name": (c_char_p, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_program__set_expected_attach_type": (c_int, [c_void_p, c_int]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__attach": (c_void_p, [c_void_p]),
    "bpf_program__set_log_buf": (c_int, [c_void_p, c_char_p, c_size_t]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__set_autocreate": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_link__destroy": (c_int, [c_void_p]),
    "bpf_link__fd": (c_int, [c_void_p]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_void_p, c_void_p, ctypes.c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_void_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_void_p, c_void_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, POINTER(c_uint32)]),
    "libbpf_num_possible_cpus": (c_int, []),
}

_messages: list[str] = []
_callbacks: list[Callable[..., int]] = []


@functools.cache
def library() -> CDLL:
    """Libbpf 1.x, with typed functions and its messages kept for `last_messages`.

    Raises:
        LoadError: there is no libbpf.
    """
    names = (os.environ.get("ONLOOKER_LIBBPF"), "libbpf.so.1", ctypes.util.find_library("bpf"))
    for name in filter(None, names):
        try:
            found = CDLL(name, use_errno=True)
            break
        except OSError:
            continue
    else:
        raise LoadError("cannot load libbpf.so.1; install it (Debian: libbpf1, Fedora: libbpf)")
    for function, (result, arguments) in _SIGNATURES.items():
        f = getattr(found, function)
        f.restype, f.argtypes = result, arguments
    libc = CDLL(None)
    libc.vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]

    def keep(level: int, form: bytes, arguments: int) -> int:
        buffer = ctypes.create_string_buffer(65536)
        libc.vsnprintf(buffer, len(buffer), form, arguments)
        if level <= 1:
            _messages.append(buffer.value.decode(errors="replace"))
            del _messages[:-200]
        return 0

    callback = PRINT(keep)
    _callbacks.append(callback)
    found.libbpf_set_print(callback)
    return found


def last_messages() -> str:
    """What libbpf said since the last call: its errors, and the verifier's log in them."""
    text = "".join(_messages)
    _messages.clear()
    return text
