"""A compiled seccomp filter on its way from the host's side, which made it, to the process that loads it."""

from __future__ import annotations

from nagaya.linux import os
from nagaya.linux.seccomp_load import load
from nagaya.runtime import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime.steps.context import Context


class Seccomp:
    """A compiled filter."""

    __slots__ = ("agent", "early_clone", "flags", "program")

    def __init__(self, program: bytes, flags: int, early_clone: bool, agent: tuple[str, str]) -> None:
        self.program = program
        self.flags = flags
        self.early_clone = early_clone  # the filter refuses what the last clone needs
        self.agent = agent  # (listenerPath, listenerMetadata) of a filter with a listener, else ("", "")

    def comes_last(self, no_new_privileges: bool) -> bool:
        """Is it loaded right before the exec, after the parent's last GO?"""
        return no_new_privileges or self.early_clone

    def load(self, context: Context) -> None:
        """Install it, and wait until the parent has handed a listener to the agent. Raises KernelError."""
        listener = load(self.program, self.flags)
        if listener >= 0:
            context.channel.write(channel.LISTENER, listener)
            if not os.read(context.channel.fileno(), 64):
                os._exit(1)
            os.close(listener)
