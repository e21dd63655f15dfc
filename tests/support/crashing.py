"""nagayad that kills itself at a point of the journal. argv: the point's name, then the daemon's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from nagaya.daemon.main import main as daemon
from nagaya.engine.journal import Journal


def main(argv: Sequence[str]) -> int:
    def point(self: Journal, name: str) -> None:
        if name == argv[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.point = point  # type: ignore[method-assign]
    return daemon(argv[1:])
