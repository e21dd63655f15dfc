"""nagayad that dies at a step of its first build: a call that changes a file or the ledger. argv: the step,
then the daemon's own."""

from __future__ import annotations

from collections.abc import Sequence

from killsteps import Steps

from nagaya.daemon.main import main as daemon
from nagaya.engine.workshop import Workshop


def main(argv: Sequence[str]) -> int:
    steps, original = Steps(int(argv[0])), Workshop.directory

    def first(workshop: Workshop) -> str:
        Workshop.directory = original  # type: ignore[method-assign]
        steps.arm()
        return original(workshop)

    Workshop.directory = first  # type: ignore[method-assign,assignment]
    return daemon(argv[1:])
