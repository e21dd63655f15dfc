"""`exec`: one more process in a running container."""

from __future__ import annotations

from nagaya.errors import FailedPrecondition, NagayaError
from nagaya.linux import pids, process, tty
from nagaya.runtime import state as store
from nagaya.runtime.verbs import exec as runtime_exec
from nagaya.runtime.verbs import launch
from nagaya.vm import first, launching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_exec.USAGE, runtime_exec.ARITY, runtime_exec.OPTIONS


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Exit code of the process; 0 when detached."""
    identifier, arguments = positional[0], positional[1:]
    record = store.load(settings.root, identifier)
    wanted = runtime_exec.process_of(record, options, arguments)
    detached: bool = options["detach"]
    terminal = bool(wanted.get("terminal"))
    launch.check_console(terminal, options, detached)
    for name in ("preserve-fds", "cgroup"):
        if options[name]:
            raise FailedPrecondition(f"--{name} has no meaning in a microVM", subject=f"--{name}")
    if not detached:
        return _here(settings, identifier, wanted, options["ignore-paused"])
    launched = launching.execute(
        settings.root,
        identifier,
        wanted,
        console=(0, 0) if terminal else None,
        pid_file=options["pid-file"],
        ignore_paused=options["ignore-paused"],
    )
    try:
        launch.hand_out(options, launched, detached=True)
    except NagayaError:
        pids.pidfd_send_signal(launched.pidfd, 9)
        raise
    return 0


def _here(settings: Settings, identifier: str, wanted: dict[str, Any], ignore_paused: bool) -> int:
    """We wait ourselves: no other process stands in between."""
    directory = launching.running(settings.root, identifier, wanted, ignore_paused=ignore_paused)
    signals = process.signalfd(first.forwarded())
    terminal, former = bool(wanted.get("terminal")), b""
    if terminal:
        try:
            former = tty.make_raw(0)
            tty.plain_newlines(0)  # the guest's terminal has added the carriage returns
            wanted = {**wanted, "consoleSize": dict(zip(("height", "width"), tty.get_size(0), strict=True))}
        except NagayaError:
            pass  # our stdin is no terminal: the process has one all the same
    try:
        sock = first.asked(directory, {"op": "exec", "container": identifier}, wanted)
        return first.serve(sock, signals, 0 if former else -1)
    finally:
        if former:
            tty.restore(0, former)
