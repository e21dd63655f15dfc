"""What goes wrong, as Firecracker says it: a status, and the text of `fault_message`."""

from __future__ import annotations

import os


class Fault(Exception):
    """An answer that is no success; str() is its message."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def after_start() -> Fault:
    """What may be done only before the start."""
    return Fault("The requested operation is not supported after starting the microVM.")


def before_start() -> Fault:
    """What may be done only after the start."""
    return Fault("The requested operation is not supported before starting the microVM.")


def not_supported(what: str) -> Fault:
    """What this engine cannot do."""
    return Fault(f"The requested operation is not supported: {what}")


def os_words(error: OSError) -> str:
    """An error of the kernel in Rust's words."""
    return f"{os.strerror(error.errno or 0)} (os error {error.errno or 0})"
