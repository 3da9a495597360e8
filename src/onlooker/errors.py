"""Every error that onlooker raises on purpose.

Callers catch by what they can do about it::

    AgentError
    ├── ConfigError                what is wrong, at which key, which values would do   (exit 2)
    ├── UnsupportedKernelError     feature, what still works, what to do                (exit 3)
    ├── BpfError
    │   ├── LoadError
    │   │   └── VerifierError      .program, .log
    │   ├── AttachError            .target
    │   └── RecordLayoutError
    ├── ExportError                .retryable
    ├── StoreError
    ├── DescriptorError            nothing could be opened, for now
    └── NotElfError                a file of a watched process that cannot be read as a program

A message says what failed, on what, why, and what the reader loses or can do.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of all errors that onlooker raises on purpose."""

    exit_code = 1


class ConfigError(AgentError):
    """The configuration cannot be used.

    Attributes:
        place: Where it stands: a file with its key, an environment variable or a flag.
    """

    exit_code = 2

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(f"{place}: {message}" if place else message)
        self.place = place


class UnsupportedKernelError(AgentError):
    """The running kernel, or the privileges on it, do not allow something that was asked for."""

    exit_code = 3


class DescriptorError(AgentError):
    """There is no file descriptor left: nothing is known of what was to be opened, and later it may work again."""


class BpfError(AgentError):
    """A BPF object could not be used."""

    exit_code = 3


class LoadError(BpfError):
    """The kernel refused a program or a map."""


class VerifierError(LoadError):
    """The verifier refused a program.

    ``str()`` gives the last telling line and the number of lines left out; ``log`` has all.
    """

    def __init__(self, program: str, log: str) -> None:
        lines = [line for line in log.splitlines() if line.strip()]
        telling = [line for line in lines if not line.startswith(("processed ", "-- END", "-- BEGIN"))]
        last = telling[-1] if telling else "no log"
        super().__init__(f"the kernel's verifier refused {program}: {last} ({max(len(lines) - 1, 0)} lines left out)")
        self.program = program
        self.log = log


class AttachError(BpfError):
    """A loaded program could not be attached to its hook."""

    def __init__(self, message: str, *, target: str = "") -> None:
        super().__init__(message)
        self.target = target


class RecordLayoutError(BpfError):
    """The built BPF object and the generated numpy dtypes do not agree."""


class ExportError(AgentError):
    """A batch could not be delivered.

    Attributes:
        retryable: Whether the same batch may be taken later.
        retry_after_s: What the receiver asked for, in seconds; 0 if it did not say.
    """

    def __init__(self, message: str, *, retryable: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class StoreError(AgentError):
    """The embedded store cannot be used."""


class NotElfError(AgentError):
    """A file is no ELF program that can be looked into; the process that uses it is skipped with this reason."""
