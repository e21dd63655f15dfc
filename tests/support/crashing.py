"""nagayad that kills itself at a point of the journal. argv: the point's name ("NAME#3": the third time
that it gets there), then the daemon's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from nagaya.daemon.main import main as daemon
from nagaya.engine.journal import Journal


def main(argv: Sequence[str]) -> int:
    wanted, _, times = argv[0].partition("#")
    left = int(times or "1")

    def point(self: Journal, name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    Journal.point = point  # type: ignore[method-assign]
    return daemon(argv[1:])
