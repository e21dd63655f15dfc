"""How the program is run: CPUs, scheduler, I/O priority, memory policy, personality. Imported by the
parent when a process has one of them."""

from __future__ import annotations

import errno

from nagaya.errors import KernelError
from nagaya.linux import process, sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.oci.scheduling import Scheduling

_RESET_ON_FORK, _DEADLINE = 1, 6


def apply(wanted: Scheduling, *, last_clone: bool) -> None:
    """While we still have root's rights. What a clone that is still to come would undo is left to the
    parent (see `outlives_no_clone`). Raises KernelError."""
    if wanted.scheduler is not None and not (last_clone and outlives_no_clone(wanted)):
        schedule(wanted, 0)
    if wanted.io is not None:
        sched.set_io_priority(wanted.io)
    if wanted.memory is not None:
        sched.set_memory_policy(*wanted.memory)
    if wanted.personality is not None:
        process.personality(wanted.personality)


def outlives_no_clone(wanted: Scheduling) -> bool:
    """A child does not get it: SCHED_DEADLINE, and all that is reset on fork (sched(7))."""
    return wanted.scheduler is not None and (
        wanted.scheduler[0] == _DEADLINE or bool(wanted.scheduler[1] & _RESET_ON_FORK)
    )


def schedule(wanted: Scheduling, pid: int) -> None:
    """Apply process.scheduler to a process. Raises KernelError."""
    if wanted.scheduler is None:
        return
    try:
        sched.set_scheduler(pid, *wanted.scheduler)
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise KernelError(
                "process scheduler can't be used together with AllowedCPUs, or is not permitted",
                subject="process.scheduler",
                errno=error.errno,
            ) from None
        raise
