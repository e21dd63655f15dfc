"""Registries that accept and never answer: a cancelled pull ends at once, wherever it waits."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import Answer, FakeRegistry, digest_of, file, quick, tar
from house import wait_for
from memory_catalog import MemoryCatalog

from nagaya.errors import Cancelled, NagayaError, Unavailable
from nagaya.image.store import ImageStore

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")

ME = os.getuid()
LAYER = tar(file("a", os.urandom(1 << 20)), owner=ME)


@contextmanager
def silent(backlog: int = 16) -> Iterator[tuple[str, list[socket.socket]]]:
    """(address, connections) of a server that takes every connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server, ExitStack() as stack:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(stack.enter_context(server.accept()[0]))
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def cancelled(store: ImageStore, name: str, waits: Callable[[], object]) -> tuple[NagayaError | None, float]:
    """(how a pull ended, seconds it took) that was cancelled once it waited."""
    cancel = threading.Event()
    ended: list[NagayaError | None] = []

    def pull() -> None:
        try:
            store.pull(name, cancel=cancel)
            ended.append(None)
        except NagayaError as error:
            ended.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    wait_for(waits, 20, "the pull's waiting")
    time.sleep(0.3)
    assert thread.is_alive()
    begun = time.monotonic()
    cancel.set()
    thread.join(50)
    assert not thread.is_alive()
    return ended[0], time.monotonic() - begun


def patient(path: Path, **changes: Any) -> ImageStore:
    """A store that would wait for a minute."""
    return ImageStore(
        str(path), MemoryCatalog(), quick(connect_timeout=60.0, read_timeout=60.0, downloads=1, **changes)
    )


def test_while_it_waits_for_an_answer(tmp_path: Path) -> None:
    with silent() as (address, taken):
        store = patient(tmp_path)
        store._puller.schemes[address] = "http"  # else the probe's own shorter time-out is what ends it
        error, seconds = cancelled(store, f"{address}/a/b:1", lambda: taken)
    assert isinstance(error, Cancelled) and seconds < 5, (error, seconds)


def test_while_it_waits_for_a_tls_hello(tmp_path: Path) -> None:
    with silent() as (address, taken):
        store = patient(tmp_path)
        store._puller.schemes[address] = "https"
        error, seconds = cancelled(store, f"{address}/a/b:1", lambda: taken)
    assert isinstance(error, Cancelled) and seconds < 5, (error, seconds)


def test_while_it_waits_for_a_connection(tmp_path: Path) -> None:
    """A listener whose queue is full drops SYNs: connect(2) hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for _ in range(3):
            probe = stack.enter_context(socket.socket())
            probe.setblocking(False)
            probe.connect_ex(server.getsockname())
        store = patient(tmp_path)
        store._puller.schemes[address] = "http"
        syn = f"{server.getsockname()[1]:04X} 02 "

        def connecting() -> bool:
            return any(syn in line for line in Path("/proc/net/tcp").read_text().splitlines())

        error, seconds = cancelled(store, f"{address}/a/b:1", connecting)
    assert isinstance(error, Cancelled) and seconds < 5, (error, seconds)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_in_the_middle_of_a_blob_and_its_place_is_free(tmp_path: Path, tls: bool) -> None:
    """One download at a time: the next pull gets the place of the one that hung."""
    go_on = threading.Event()
    with FakeRegistry() as registry:
        registry.image(LAYER, tag="hangs")
        registry.image(tar(file("b", b"x"), owner=ME), tag="next")
        if tls:
            pem = tmp_path / "key.pem"
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
                 "-keyout", str(pem), "-out", str(tmp_path / "cert.pem")],
                check=True, capture_output=True,
            )  # fmt: skip
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "cert.pem", pem)
            registry._server.socket = context.wrap_socket(registry._server.socket, server_side=True)
        hanging = threading.Event()

        def script(path: str, headers: dict[str, str]) -> None:
            if digest_of(LAYER) in path:
                hanging.set()
                go_on.wait(60)
                raise Answer(404)

        registry.script = script
        store = patient(tmp_path / "store")
        store._puller.schemes[registry.address] = "https" if tls else "http"
        try:
            error, seconds = cancelled(store, registry.name("hangs"), hanging.is_set)
            assert isinstance(error, Cancelled) and seconds < 5, (error, seconds)
            begun = time.monotonic()
            assert store.pull(registry.name("next")).names
            assert time.monotonic() - begun < 5
        finally:
            go_on.set()


def test_a_silent_registry_is_given_up_after_the_configured_time(tmp_path: Path) -> None:
    with silent() as (address, taken):
        store = ImageStore(str(tmp_path), MemoryCatalog(), quick(read_timeout=0.3, retries=1))
        store._puller.schemes[address] = "http"
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=r'Get "http://.*": no answer in time'):
            store.pull(f"{address}/a/b:1")
        assert 0.6 <= time.monotonic() - begun < 5
        assert len(taken) == 2


def test_no_connection_outlives_its_pull(tmp_path: Path) -> None:
    def sockets() -> int:
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in _fds())

    with FakeRegistry() as registry:
        registry.image(LAYER)
        store = patient(tmp_path)
        before = sockets()
        store.pull(registry.name())
        wait_for(lambda: sockets() <= before, 5, "the end of the connections")


def _fds() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        if os.path.lexists(f"/proc/self/fd/{fd}"):
            yield fd
