"""A process that kills itself at the n-th step of a pull: every call that changes a file or the ledger.

Tests enumerate the steps: they run with 1, 2, 3 ... until the pull gets through. As a program: nagayad
that dies at a step of its first pull; argv: the step, then the daemon's own.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fakeregistry import quick

from nagaya.daemon.main import main as daemon
from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.image.store import ImageStore
from nagaya.linux import sync

CHANGES = (
    *("open", "mkdir", "rename", "unlink", "rmdir", "link", "symlink", "mknod", "mkfifo"),
    *("write", "pwrite", "ftruncate", "fsync", "setxattr", "utime", "chown", "fchown", "chmod", "fchmod"),
)


class Steps:
    """Kills at the n-th step: before it, or in the middle of it where it writes data."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._lock = threading.Lock()

    def arm(self) -> None:
        """From now on every change, by whatever thread, is a step."""
        for name in CHANGES:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        sync.syncfs = self._wrapped("syncfs", sync.syncfs)
        original = Ledger.write

        @contextmanager
        def write(ledger: Ledger, *, durable: bool = False) -> Iterator[Any]:
            with original(ledger, durable=durable) as db:
                yield db
                self._step()  # not committed yet
            self._step()  # it is committed, and nobody has heard of it

        Ledger.write = write  # type: ignore[method-assign,assignment]

    def _step(self, before: Callable[[], object] = lambda: None) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                before()
                os.kill(os.getpid(), signal.SIGKILL)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            def in_part() -> None:
                if name in ("write", "pwrite"):
                    fd, data, *rest = arguments
                    real(fd, bytes(data)[: len(data) // 2], *rest)

            if name != "open" or arguments[1] & os.O_CREAT:
                self._step(in_part)
            return real(*arguments, **options)

        return call


def pull(root: str, name: str, at: int) -> None:
    """Pull into a store with a ledger, and die at a step."""
    store = ImageStore(root, LedgerCatalog(Ledger(f"{root}/ledger.db")), quick())
    Steps(at).arm()
    store.pull(name)


def main(argv: Sequence[str]) -> int:
    steps, original = Steps(int(argv[0])), ImageStore.pull

    def first(store: ImageStore, *arguments: Any, **options: Any) -> Any:
        ImageStore.pull = original  # type: ignore[method-assign]
        steps.arm()
        return original(store, *arguments, **options)

    ImageStore.pull = first  # type: ignore[method-assign,assignment]
    return daemon(argv[1:])
