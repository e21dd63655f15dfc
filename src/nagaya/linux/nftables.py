"""libnftables by name: commands in nft(8)'s language, each buffer one atomic transaction.

`run` takes what `nft -f` takes and returns what it prints, as text or as JSON
(libnftables-json(5)); see libnftables(3). The library is opened on the first `Nftables()`: a daemon
that never makes a bridge never loads it. Its parser keeps global state, so one lock serves the process.
"""

from __future__ import annotations

import errno
from _ctypes import FUNCFLAG_CDECL, CFuncPtr, _SimpleCData, dlopen

# the lock type of every Python start-up; `threading` around it is not on this room's import list
from _thread import allocate_lock

from nagaya.errors import FailedPrecondition, KernelError
from nagaya.linux import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_LIBRARY = "libnftables.so.1"
_OUTPUT_HANDLE, _OUTPUT_JSON = 1 << 3, 1 << 4  # enum in nftables/libnftables.h

# the library reports words, not numbers: those that callers decide by
_NUMBERS = {
    os.strerror(number): number
    for number in (errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.EPERM, errno.ENODEV, errno.EOPNOTSUPP)
}

_lock = allocate_lock()


class _CInt(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _CUInt(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class _CPointer(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _CBytes(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Handle:
    def __init__(self, handle: int) -> None:
        self._handle = handle


def _function(library: _Handle, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    kind = type("Function", (CFuncPtr,), {"_flags_": FUNCFLAG_CDECL, "_restype_": result})
    function: Any = kind((name, library))
    function.argtypes = tuple(arguments)
    return function


class _Library:
    """The few functions of libnftables that are needed, with their C types."""

    def __init__(self, name: str) -> None:
        try:
            library = _Handle(dlopen(name, os.RTLD_NOW))
        except OSError as error:
            raise FailedPrecondition(
                f"{name} cannot be loaded ({error}); install the nftables library "
                "(Debian, Ubuntu: apt install libnftables1)",
                subject=name,
                step="nft",
            ) from None
        self.ctx_new = _function(library, "nft_ctx_new", _CPointer, (_CUInt,))
        self.ctx_free = _function(library, "nft_ctx_free", None, (_CPointer,))
        self.buffer_output = _function(library, "nft_ctx_buffer_output", _CInt, (_CPointer,))
        self.buffer_error = _function(library, "nft_ctx_buffer_error", _CInt, (_CPointer,))
        self.set_flags = _function(library, "nft_ctx_output_set_flags", None, (_CPointer, _CUInt))
        self.run = _function(library, "nft_run_cmd_from_buffer", _CInt, (_CPointer, _CBytes))
        self.output = _function(library, "nft_ctx_get_output_buffer", _CBytes, (_CPointer,))
        self.error = _function(library, "nft_ctx_get_error_buffer", _CBytes, (_CPointer,))


def first_error(text: str) -> tuple[str, int]:
    """(one line, errno or 0) of what libnftables wrote about a failure.

    Its lines are "PLACE: Error: WORDS", the command, and a marker; only the first error counts,
    the others follow from it.
    """
    for line in text.splitlines():
        _, found, words = line.partition("Error: ")
        if found:
            words = words.strip()
            for known, number in _NUMBERS.items():
                if words.endswith(known):
                    return words, number
            return words, 0
    return " ".join(text.split()) or "unknown error", 0


class Nftables:
    """A libnftables context: it acts in the network namespace in which it was made."""

    def __init__(self, library: str = _LIBRARY) -> None:
        """Raises FailedPrecondition when the library is missing."""
        with _lock:
            self._library = _Library(library)
            self._context: int | None = self._library.ctx_new(0)
            if not self._context:
                raise FailedPrecondition("libnftables has no context to give", step="nft")
            self._library.buffer_output(self._context)
            self._library.buffer_error(self._context)

    def close(self) -> None:
        """Free the context."""
        with _lock:
            context, self._context = self._context, None
            if context:
                self._library.ctx_free(context)

    def run(self, commands: str, *, step: str = "nft", json: bool = False, handles: bool = False) -> str:
        """Run the commands as one transaction and return what they print.

        json: the output is JSON; the input may be either language then. handles: text output shows
        them (JSON always does). Raises KernelError with the first error's words, its errno where the
        words say it, and `step`; nothing was changed then.
        """
        with _lock:
            if not self._context:
                raise FailedPrecondition("the nftables context is closed", step=step)
            flags = (_OUTPUT_JSON if json else 0) | (_OUTPUT_HANDLE if handles else 0)
            self._library.set_flags(self._context, flags)
            result = self._library.run(self._context, commands.encode())
            # both buffers are emptied by the reading of them
            output = (self._library.output(self._context) or b"").decode("utf-8", "replace")
            error = (self._library.error(self._context) or b"").decode("utf-8", "replace")
        if result:
            words, number = first_error(error)
            raise KernelError(words, step=step, errno=number)
        return output
