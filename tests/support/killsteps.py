"""A process that kills itself at the n-th step of work on images: a call that changes a file, the ledger,
or, in a push, the registry.

Tests enumerate the steps: they run with 1, 2, 3 ... until it gets through. As a program: nagayad
that dies at a step of its first pull; argv: the step, then the daemon's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from fakeregistry import quick
from parcels import pieces

from nagaya.daemon.main import main as daemon
from nagaya.engine import filling
from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.layered import LayeredRoot
from nagaya.engine.ledger import Ledger
from nagaya.image.building import Base, Layer
from nagaya.image.catalog import StepRow
from nagaya.image.making import Recipe
from nagaya.image.removal import Use
from nagaya.image.store import ImageStore
from nagaya.image.transport import Answer, Transport
from nagaya.linux import sync

CHANGES = (
    *("open", "mkdir", "rename", "unlink", "rmdir", "link", "symlink", "mknod", "mkfifo"),
    *(
        "write",
        "pwrite",
        "sendfile",
        "ftruncate",
        "fsync",
        "setxattr",
        "utime",
        "chown",
        "fchown",
        "chmod",
        "fchmod",
    ),
)


@contextmanager
def recovered(root: Path) -> Iterator[tuple[LedgerCatalog, ImageStore]]:
    """The store below root as a daemon that starts leaves it."""
    ledger = Ledger(f"{root}/ledger.db")
    try:
        catalog = LedgerCatalog(ledger)
        store = ImageStore(str(root), catalog, quick())
        store.recover()
        yield catalog, store
    finally:
        ledger.close()


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

    def arm_wire(self) -> None:
        """Every request is three steps, too: before it, within its body, and when its answer has come."""
        original = Transport.request

        def within(body: Iterable[bytes]) -> Iterator[bytes]:
            for piece in body:
                yield piece[: len(piece) // 2]
                self._step()
                yield piece[len(piece) // 2 :]

        def request(
            transport: Transport,
            method: str,
            url: str,
            headers: Mapping[str, str],
            body: bytes | Iterable[bytes] | None = None,
        ) -> Answer:
            self._step()
            if body is not None and not isinstance(body, bytes):
                body = within(body)
            answer = original(transport, method, url, headers, body)
            self._step()
            return answer

        Transport.request = request  # type: ignore[method-assign,assignment]

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


def load(root: str, archive: str, at: int) -> None:
    """Load an archive into a store with a ledger, and die at a step."""
    store = ImageStore(root, LedgerCatalog(Ledger(f"{root}/ledger.db")), quick())
    Steps(at).arm()
    store.load(pieces(Path(archive)))


def commit(root: str, snapshot: str, at: int) -> None:
    """Commit a snapshot of base:1 in a store with a ledger, and die at a step."""
    store = ImageStore(root, LedgerCatalog(Ledger(f"{root}/ledger.db")), quick())
    base = store.resolve("base:1").id
    Steps(at).arm()
    store.commit(snapshot, base, frozenset(), Recipe({"Cmd": ["x"]}, "2024-01-02T03:04:05Z"), "new:1")


def fill(data: str, layers: str, at: int) -> None:
    """Fill the volume at data, in whose name it says whether something is mounted there, with what an image
    has in /data, and die at a step."""
    image = LayeredRoot([f"{layers}/upper", f"{layers}/lower"])
    Steps(at).arm()
    filling.copy_up(image, "/data", data, mounted=data.endswith("mounted"))


def push(root: str, name: str, at: int) -> None:
    """Push an image, and die at a step."""
    store = ImageStore(root, LedgerCatalog(Ledger(f"{root}/ledger.db")), quick())
    steps = Steps(at)
    steps.arm()
    steps.arm_wire()
    store.push(name)


def collect(root: str, what: str, at: int) -> None:
    """Take away one:1 in one of several ways, and die at a step."""
    store = ImageStore(root, LedgerCatalog(Ledger(f"{root}/ledger.db")), quick())
    Steps(at).arm()
    take_away(store, what)


def take_away(store: ImageStore, what: str) -> None:
    """ "remove": the image one:1; "prune": all but two:1; "snapshot": a container's files, the last that
    needed the layers of one:1."""
    if what == "remove":
        store.remove("one:1", ())
    elif what == "prune":
        store.prune([Use(store.resolve("two:1").id, "box", True)], lambda _: True, dangling=False)
    else:
        store.remove_snapshot("box")


def build(root: str, files: str, at: int) -> None:
    """Build an image of two layers in a store with a ledger, and die at a step."""
    store = ImageStore(root, LedgerCatalog(Ledger(f"{root}/ledger.db")), quick())
    Steps(at).arm()
    steps: list[StepRow] = []
    layers: list[Layer] = []
    with store.builds.open() as bench:
        for number in range(2):
            name, overlay = bench.snapshot([layer.diff_id for layer in layers])
            shutil.copytree(files, f"{overlay['upper']}/{number}", symlinks=True)
            layer = bench.layer(name, frozenset(), 1, lambda: None)
            bench.drop(name)
            assert layer is not None
            layers.append(layer)
            made = (layer.diff_id, layer.blob.digest, layer.blob.size)
            steps.append(StepRow(f"k{number}", "", "2024-01-02T03:04:05Z", "RUN", 1, 1, 0, *made))
        document = {"architecture": "amd64", "os": "linux", "config": {}}
        document |= {"rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}}
        bench.finish(steps, Base("", document, tuple(layers)), ["docker.io/library/built:1"])


JOBS = {
    "pull": pull,
    "load": load,
    "commit": commit,
    "fill": fill,
    "push": push,
    "collect": collect,
    "build": build,
}


def serve() -> None:
    """Run jobs that lines of stdin tell, each in a fork of its own; print how it ended."""
    for line in sys.stdin:
        job, *arguments = json.loads(line)
        pid = os.fork()
        if not pid:
            try:
                JOBS[job](*arguments)
                if not arguments[-1]:  # it is done, and nobody has heard of it
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Victims:
    """Processes that die, one after the other: forks of a warm one without threads."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:0] = {sys.path!r}; from killsteps import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, job: str, root: Path, what: object, at: int) -> int:
        """How the job ended, as `subprocess` tells it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([job, str(root), str(what), at]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """The end of them."""
        self._process.communicate(timeout=60)


def enumerate_steps(at_step: Callable[[Victims, int], bool | None]) -> list[bool | None]:
    """at_step with 1, 2, 3 ... until it says that the work got through (None), some at the same time,
    and with 0, the moment after the last; what each said."""
    victims = [Victims() for _ in range(4)]
    idle: Queue[Victims] = Queue()
    for victim in victims:
        idle.put(victim)

    def step(number: int) -> bool | None:
        victim = idle.get()
        try:
            return at_step(victim, number)
        finally:
            idle.put(victim)

    found: list[bool | None] = []
    try:
        with ThreadPoolExecutor(len(victims)) as pool:
            while None not in found:
                found += pool.map(step, range(len(found), len(found) + 8))
    finally:
        for victim in victims:
            victim.close()
    return found


def main(argv: Sequence[str]) -> int:
    steps, original = Steps(int(argv[0])), ImageStore.pull

    def first(store: ImageStore, *arguments: Any, **options: Any) -> Any:
        ImageStore.pull = original  # type: ignore[method-assign]
        steps.arm()
        return original(store, *arguments, **options)

    ImageStore.pull = first  # type: ignore[method-assign,assignment]
    return daemon(argv[1:])
