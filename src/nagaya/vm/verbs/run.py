"""`run`: create, start, wait, delete."""

from __future__ import annotations

from nagaya.errors import NagayaError
from nagaya.linux import tty
from nagaya.runtime.verbs import launch
from nagaya.runtime.verbs import run as runtime_run
from nagaya.vm import launching

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE, ARITY, OPTIONS = runtime_run.USAGE, runtime_run.ARITY, runtime_run.OPTIONS


class _PlainNewlines:
    """While a terminal is relayed, ours adds no carriage return: the guest's has done so."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._former = b""

    def __enter__(self) -> None:
        try:
            if self._wanted:
                self._former = tty.make_raw(0)
                tty.restore(0, self._former)
                tty.plain_newlines(0)
        except NagayaError:
            pass  # our stdin is no terminal

    def __exit__(self, *_: object) -> None:
        if self._former:
            tty.restore(0, self._former)


def main(settings: Settings, options: dict[str, Any], positional: list[str]) -> int:
    """Exit code of the container's process; 0 when detached."""
    identifier = positional[0]
    bundle, spec = launch.bundle_of(options)
    detached: bool = options["detach"]
    terminal = bool((spec.get("process") or {}).get("terminal"))
    launch.check_console(terminal, options, detached)
    keywords = {**launch.arguments_for(settings, options, spec), "values": settings.values}
    front = None if detached else launch.Foreground()
    launched = launching.make(settings.root, identifier, bundle, spec, waits=False, **keywords)
    try:
        launch.hand_out(options, launched, detached=detached)
    except NagayaError:
        launching.remove(settings.root, identifier, force=True)
        raise
    if front is None:
        return 0
    with _PlainNewlines(terminal):
        code = front.wait(launched)
    if not options["keep"]:
        for text in launching.remove(settings.root, identifier, force=True):
            settings.log.message("warning", text)
    return code
