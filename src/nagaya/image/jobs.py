"""Pieces of one work done at the same time: the first failure stops the others, and is what is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

from nagaya.errors import Cancelled, NagayaError
from nagaya.image.unpacking import POLL

Check = Callable[[], None]


def together(pieces: Sequence[Callable[[Check], None]], workers: int, name: str, check: Check) -> None:
    """Run all, at most `workers` at a time, each with a check that raises also when another has failed.

    Returns when none runs any more. Raises what the one that failed first of itself raised.
    """
    if not pieces:
        return
    stop = threading.Event()

    def checked() -> None:
        check()
        if stop.is_set():
            raise Cancelled("another layer of the image failed")

    with ThreadPoolExecutor(min(len(pieces), workers), name) as pool:
        jobs = [pool.submit(piece, checked) for piece in pieces]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for job in jobs:
                job.cancel()
    errors = [e for job in jobs if not job.cancelled() and (e := job.exception()) is not None]
    # the one that failed, rather than those that were stopped because of it
    for error in sorted(errors, key=lambda e: isinstance(e, Cancelled)):
        raise error


@contextmanager
def watched(check: Check, cut: Callable[[], None]) -> Iterator[None]:
    """cut when check raises, from a thread of its own: those of the work may all wait for a socket;
    and in any case at the end."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL):
            try:
                check()
            except NagayaError:
                cut()
                return

    thread = threading.Thread(target=watch, name="nagaya-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        cut()
        thread.join()
