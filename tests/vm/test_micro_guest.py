"""A real guest: QEMU confined, our agent in it, containers in that. One boot for all, by its saved state."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import microvm
import pytest
from microvm import Client

from nagaya.errors import CommandNotFound, KernelError, NotFound, Unavailable
from nagaya.vm import assets, qemu
from nagaya.vm.confine import Confinement
from nagaya.vm.machine import Drive, Machine, Memory
from nagaya.vm.qemu import Vm

pytestmark = [pytest.mark.root, pytest.mark.vm]


def _installed() -> bool:
    try:
        return bool(assets.find() and assets.find_qemu())
    except NotFound:
        return False


pytestmark.append(pytest.mark.skipif(not _installed(), reason="./dev vm was not run"))


class Saved:
    """A booted machine's state and memory."""

    def __init__(self, directory: Path) -> None:
        self.memory = directory / "memory"
        self.state = directory / "state"
        with self.memory.open("wb") as file:
            file.truncate(128 << 20)
        self.memory.chmod(0o666)

    def machine(self, *, shared: bool = False) -> Machine:
        return microvm.machine(memory=Memory(128, path=str(self.memory), shared=shared))

    def clone(self) -> Vm:
        vm = qemu.launch(self.machine(), incoming=True, confined=Confinement())
        state = os.open(self.state, os.O_RDONLY)
        try:
            vm.load(state)
        finally:
            os.close(state)
        vm.resume()
        return vm


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    made = Saved(tmp_path_factory.mktemp("template"))
    vm = qemu.launch(made.machine(shared=True), confined=Confinement())
    try:
        client = Client(vm.agent, vm=vm)
        assert client.ready().kernel.endswith("-amd64")
        microvm.put_root(client)
        state = os.open(made.state, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        vm.save(state)
        os.close(state)
        yield made
    finally:
        vm.close()
        made.memory.unlink()


@pytest.fixture
def vm(saved: Saved) -> Iterator[Vm]:
    vm = saved.clone()
    yield vm
    vm.close()
    assert not Path(f"/proc/{vm.pid}").exists()


@pytest.fixture
def client(vm: Vm) -> Client:
    client = Client(vm.agent, ready=True, vm=vm)
    client.call("renew", time=time.time_ns(), seed=os.urandom(64))
    return client


def test_a_container_and_an_exec(client: Client) -> None:
    first = client.create(
        "c1", "sh", "-c", 'echo $$ $(hostname) "$X"; cat; exit 7', hostname="inside", env="X=y", stdin=1
    )
    client.call("start", process=first)
    assert client.run("c1", "sh", "-c", "echo $PPID >&2; hostname").err == b"0\n"
    result = client.finish(first, stdin=b"line\n" * 50_000)
    assert result.out == b"1 inside y\n" + b"line\n" * 50_000
    assert (result.code, result.err, result.oom) == (7, b"", 0)
    client.remove("c1")
    with pytest.raises(KernelError, match="does not run"):
        client.run("c1", "true")


def test_qemu_is_nobody_and_sees_nothing(vm: Vm) -> None:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{vm.pid}/status").read_text().splitlines() if ":" in line
    )
    assert int(status["Uid"].split()[0]) >= 0x60000000
    assert int(status["Gid"].split()[0]) >= 0x60000000
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    for space in ("mnt", "net", "pid", "ipc", "uts", "user"):
        assert os.readlink(f"/proc/{vm.pid}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}")
    root = Path(f"/proc/{vm.pid}/root")
    assert {path.name for path in root.iterdir()} <= {
        "usr",
        "lib",
        "lib64",
        "lib32",
        "bin",
        "etc",
        "dev",
        "vm",
    }
    assert {path.name for path in (root / "etc").iterdir()} == {"ld.so.cache"}
    with pytest.raises(OSError, match="Read-only"):
        (root / "usr" / "nagt").write_text("")


def test_two_clones_have_nothing_in_common(saved: Saved, client: Client) -> None:
    other = saved.clone()
    try:
        second = Client(other.agent, ready=True, vm=other)
        second.call("renew", time=time.time_ns(), seed=os.urandom(64))
        ids = [c.call("read", path="/proc/sys/kernel/random/uuid")["data"] for c in (client, second)]
        assert ids[0] != ids[1]
        client.call("write", path="/run/mark", data=b"x")
        assert second.call("read", path="/run/mark") == {"error": b"2"}
    finally:
        other.close()


def test_the_clock_is_the_host_s(client: Client) -> None:
    client.start("c1", "sleep", "1000")
    said = int(client.run("c1", "busybox", "date", "+%s").out)
    assert abs(said - time.time()) < 30


def test_pause_and_resume(vm: Vm, client: Client) -> None:
    vm.pause()
    assert vm.qmp.call("query-status")["running"] is False
    vm.resume()
    assert client.call("ping")["version"] == b"1"


def test_the_guest_powers_off(vm: Vm, client: Client) -> None:
    _, data = client.connection.call("poweroff")
    client.sock.sendall(data)
    assert vm.wait(microvm.PATIENCE) == 0


def test_what_cannot_be_run(client: Client) -> None:
    with pytest.raises(CommandNotFound, match=r"nonesuch: executable file not found in \$PATH"):
        client.create("c1", "nonesuch")
    client.remove("c1")
    client.start("c2", "sleep", "1000")
    with pytest.raises(CommandNotFound):
        client.run("c2", "/bin/nonesuch")


def test_a_broken_machine_says_why(saved: Saved, tmp_path: Path) -> None:
    machine = saved.machine()
    machine.drives = [Drive("d0", str(tmp_path / "nonesuch"))]
    with pytest.raises(KernelError, match="nonesuch: No such file"):
        qemu.launch(machine, confined=Confinement())
    machine = saved.machine()
    machine.kernel = str(tmp_path / "kernel")
    Path(machine.kernel).write_bytes(b"no kernel")
    with pytest.raises(Unavailable, match="QEMU does not start: "):
        qemu.launch(machine, confined=Confinement())
