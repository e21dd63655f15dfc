"""A real guest: QEMU confined, our agent in it, containers in that. One boot for all, by its saved state."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import microvm
import pytest
from microvm import Client

from nagaya.errors import (
    CommandNotFound,
    DataLoss,
    DeadlineExceeded,
    KernelError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from nagaya.linux import mounts
from nagaya.vm import accel, assets, initramfs, kernel, making, probe, qemu, templates
from nagaya.vm.confine import Confinement
from nagaya.vm.machine import Balloon, Drive, Machine, Nic, Share
from nagaya.vm.qemu import Vm
from nagaya.vm.sharing import TAG, Shares

pytestmark = [pytest.mark.root, pytest.mark.vm]


def _installed() -> bool:
    try:
        return bool(assets.find() and assets.find_qemu())
    except NotFound:
        return False


pytestmark.append(pytest.mark.skipif(not _installed(), reason="./dev vm was not run"))


def clone(directory: Path, machine: Machine | None = None) -> Vm:
    started = templates.start(machine or microvm.machine(), directory=str(directory), confined=Confinement())
    assert started.ready
    return started.vm


def clients(vm: Vm) -> Client:
    client = Client(vm.agent, ready=True, vm=vm)
    client.call("renew", time=time.time_ns(), seed=os.urandom(64))
    return client


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the templates lie; the first test makes the first."""
    directory = tmp_path_factory.mktemp("templates")
    yield directory
    shutil.rmtree(directory)  # pytest would keep some gigabytes of memory


@pytest.fixture
def vm(saved: Path) -> Iterator[Vm]:
    vm = clone(saved)
    yield vm
    vm.close()
    assert not Path(f"/proc/{vm.pid}").exists()


@pytest.fixture
def client(vm: Vm) -> Client:
    client = clients(vm)
    microvm.put_root(client)
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


def test_no_clone_can_write_what_all_are_made_of(saved: Path, vm: Vm, client: Client) -> None:
    template = saved / templates.key(microvm.machine(), assets.find_qemu())
    before = (template / "memory").read_bytes()
    descriptors = Path(f"/proc/{vm.pid}/fd")
    (memory,) = (fd for fd in descriptors.iterdir() if os.path.basename(os.readlink(fd)) == "memory")
    flags = Path(f"/proc/{vm.pid}/fdinfo/{memory.name}").read_text().split("flags:\t")[1].split()[0]
    assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
    assert (template / "memory").stat().st_mode & 0o777 == 0o400
    client.start("c1", "sleep", "1000")
    assert client.run("c1", "dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=20").code == 0
    assert (template / "memory").read_bytes() == before


def test_two_clones_have_nothing_in_common(saved: Path, client: Client) -> None:
    other = clone(saved)
    try:
        second = clients(other)
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


def test_nothing_is_left_open(saved: Path, tmp_path: Path) -> None:
    clone(saved).close()
    before = sorted(os.listdir("/proc/self/fd"))
    vm = clone(saved)
    vm.close()
    machine = microvm.machine()
    machine.kernel = str(tmp_path / "kernel")
    Path(machine.kernel).write_bytes(b"no kernel")
    for directory in (tmp_path / "templates", tmp_path / "kernel" / "templates"):
        with pytest.raises((Unavailable, KernelError)):
            clone(directory, machine)
    machine.kernel = str(tmp_path / "nonesuch")
    with pytest.raises(KernelError, match="nonesuch"):
        qemu.launch(machine, confined=Confinement())
    assert sorted(os.listdir("/proc/self/fd")) == before


_PARENT = """
import sys, time
sys.path += sys.argv[1:]
import microvm
from nagaya.vm import qemu
from nagaya.vm.confine import Confinement
print(qemu.launch(microvm.machine(), confined=Confinement()).pid, flush=True)
time.sleep(1000)
"""


def test_a_machine_ends_with_who_started_it() -> None:
    words = [sys.executable, "-c", _PARENT, str(Path(__file__).parents[1] / "support")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        machine = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert select.select([machine], [], [], microvm.PATIENCE)[0], "QEMU runs on"
    finally:
        os.close(machine)


def test_a_broken_machine_says_why(tmp_path: Path) -> None:
    machine = microvm.machine()
    machine.drives = [Drive("d0", str(tmp_path / "nonesuch"))]
    with pytest.raises(KernelError, match="nonesuch: No such file"):
        qemu.launch(machine, confined=Confinement())
    machine = microvm.machine()
    machine.kernel = str(tmp_path / "kernel")
    Path(machine.kernel).write_bytes(b"no kernel")
    with pytest.raises(Unavailable, match="QEMU does not start: "):
        qemu.launch(machine, confined=Confinement())


def test_a_cold_boot(tmp_path: Path) -> None:
    started = templates.start(microvm.machine(), directory=str(tmp_path), confined=Confinement(), cold=True)
    try:
        assert not started.ready
        assert Client(started.vm.agent, vm=started.vm).ready().kernel.endswith("-amd64")
        assert not list(tmp_path.iterdir())
    finally:
        started.vm.close()


def test_a_template_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    machine = microvm.machine()
    machine.kernel = str(tmp_path / "kernel")
    Path(machine.kernel).write_bytes(b"no kernel")
    with pytest.raises(Unavailable, match="QEMU does not start: "):
        templates.start(machine, directory=str(tmp_path / "templates"), confined=Confinement())
    assert [path.name for path in (tmp_path / "templates").iterdir()] == ["lock"]


def test_a_guest_that_does_not_come_up(tmp_path: Path) -> None:
    machine = microvm.machine()
    machine.cmdline += " rdinit=/nonesuch"
    with pytest.raises(Unavailable, match="the guest did not come up: "):
        templates.start(machine, directory=str(tmp_path / "templates"), confined=Confinement())
    assert [path.name for path in (tmp_path / "templates").iterdir()] == ["lock"]


def test_a_damaged_template_is_made_anew(saved: Path) -> None:
    clone(saved).close()
    state = saved / templates.key(microvm.machine(), assets.find_qemu()) / "state"
    state.write_bytes(state.read_bytes()[:1000])
    vm = clone(saved)
    try:
        assert clients(vm).call("ping") == {"version": b"1"}
        assert state.stat().st_size > 1000
    finally:
        vm.close()


def test_no_room_for_a_template(tmp_path: Path) -> None:
    mounts.mount("nagt", str(tmp_path), "tmpfs", 0, "size=20m")
    try:
        with pytest.raises(ResourceExhausted, match=r"needs 128 MiB below .*, and (19|20) are free"):
            clone(tmp_path / "templates")
        assert [path.name for path in (tmp_path / "templates").iterdir()] == ["lock"]
    finally:
        mounts.umount2(str(tmp_path))


def test_disks_card_and_balloon_of_a_clone(saved: Path, tmp_path: Path) -> None:
    """The template has seen empty disks and a card without a cable; the clone finds its own there."""
    (tmp_path / "first").write_bytes(b"first".ljust(4096))
    (tmp_path / "second").write_bytes(b"second".ljust(4096))
    (tmp_path / "disk").write_bytes(b"disk".ljust(4096))
    machine = microvm.machine()
    machine.drives = [
        Drive("d0", str(tmp_path / "first")),
        Drive("d1", str(tmp_path / "second")),
        Drive("w0", str(tmp_path / "disk"), read_only=False),
    ]
    taps = templates.Taps(1)
    machine.nics = [Nic("n0", fd=taps.fds[0])]
    machine.balloon = Balloon()
    vm = clone(saved, machine)
    try:
        client = clients(vm)
        vm.set_memory(96)
        names = "vda vdb vdi".split()  # eight read-only ones, then those that can be written
        heads = client.call_all("read", [("path", f"/dev/{name}") for name in names])
        assert [data[:6].strip() for _, data in heads] == [b"first", b"second", b"disk"]
        with pytest.raises(KernelError):
            client.call("write", path="/dev/vda", data=b"x" * 4096)
        client.call("write", path="/dev/vdi", data=b"written".ljust(4096))
        microvm.put_root(client)
        client.start("c1", "sleep", "1000")
        client.run("c1", "busybox", "sync")
        assert client.call("read", path="/sys/class/net/eth0/address")["data"].strip() == b"02:6e:67:76:6d:00"
        until = time.monotonic() + microvm.PATIENCE
        while vm.memory() > 96 and time.monotonic() < until:
            time.sleep(0.05)
        assert vm.memory() == 96
    finally:
        vm.close()
        taps.close()
    with (tmp_path / "disk").open("rb") as disk:
        assert disk.read(7) == b"written"


def test_a_directory_of_the_host(saved: Path, tmp_path: Path) -> None:
    """The guest's root is root of the volume, with all owners, and nobody elsewhere; what is shared after
    the start is there, too."""
    confined = Confinement()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "secret").write_text("of root\n")
    (tmp_path / "volume" / "secret").chmod(0o600)
    (tmp_path / "later").mkdir()
    shares = Shares(str(tmp_path / "shares"), confined.base)
    vm = None
    try:
        shares.add("first", str(tmp_path / "volume"))
        machine = microvm.machine("full")
        machine.shares = [Share(TAG, shares.directory)]
        started = templates.start(machine, directory=str(saved), confined=confined)
        vm = started.vm
        shares.add("second", str(tmp_path / "later"))
        client = clients(vm)
        microvm.put_root(client)
        options = "trans=virtio,version=9p2000.L"
        client.call("mount", type="9p", source=TAG, target="/run/share", flags=0, data=options)
        binds: microvm.Fields = [
            microvm.mount("", f"/run/share/{name}", f"/{name}", mounts.MS_BIND | mounts.MS_REC)
            for name in ("first", "second")
        ]
        client.start("c1", "sleep", "1000", fields=binds)
        script = "cat /first/secret; echo new > /first/new; busybox chown 5:6 /first/new; echo x > /second/x"
        result = client.run("c1", "sh", "-c", script)
        assert (result.out, result.err) == (b"of root\n", b"")
        result = client.run("c1", "sh", "-c", "cat /first/secret; echo y > /second/y", uid=7, gid=7)
        assert result.err.count(b"Permission denied") == 2
        new = (tmp_path / "volume" / "new").stat()
        assert (new.st_uid, new.st_gid) == (5, 6)
        assert (tmp_path / "later" / "x").stat().st_uid == 0
        status = Path(f"/proc/{vm.pid}/status").read_text()
        assert int(status.split("Uid:")[1].split()[0]) == confined.base
    finally:
        if vm is not None:
            vm.close()
        shares.close()
    assert not (tmp_path / "shares").exists() or not list((tmp_path / "shares").iterdir())


_HOSTILE = r"""
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <stdio.h>
#include <unistd.h>
#include <dirent.h>
int main(void) {
    char path[300], line[200] = MANNER;
    mount("sysfs", "/sys", "sysfs", 0, 0);
    mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
    struct dirent **names;
    int count = scandir("/modules", &names, 0, alphasort);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        int fd = open(path, O_RDONLY);
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
    int port = -1;
    for (int i = 0; port < 0; i = (i + 1) % 30) {
        snprintf(path, sizeof path, "/dev/vport%dp1", i);
        port = open(path, O_RDWR);
        usleep(1000);
    }
    char junk[4096];
    memset(junk, 'x', sizeof junk);
    if (!strcmp(line, "flood")) for (;;) write(port, junk, sizeof junk);
    if (!strcmp(line, "lie")) write(port, "\xff\xff\xff\x7f\x08\0\0\0\0\0\0\0", 12);
    if (!strcmp(line, "console")) for (int i = 0; i < 2000; i++) write(2, junk, sizeof junk);
    if (!strcmp(line, "end")) { write(2, "enough\n", 7); sleep(1); reboot(RB_AUTOBOOT); }
    for (;;) pause();
}
"""


@pytest.mark.parametrize(
    ("manner", "error", "words"),
    [
        ("flood", DataLoss, "the guest broke the protocol"),
        ("lie", DataLoss, "the guest broke the protocol"),
        ("end", Unavailable, "the guest did not come up: enough"),
        ("console", DeadlineExceeded, "the guest did not come up in"),
    ],
)
def test_a_hostile_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: str, error: type[Exception], words: str
) -> None:
    """Another first process, which does what ours never would: nothing is left, and little is kept."""
    source = tmp_path / "hostile.c"
    source.write_text(_HOSTILE.replace("MANNER", f'"{manner}"'))
    compiler = shutil.which("musl-gcc") or "gcc"
    subprocess.run([compiler, "-static", "-o", str(tmp_path / "init"), str(source)], check=True)
    library = Path(making.find_kernel("cloud", str(Path(__file__).parents[2] / "build/vm"))[1])
    modules = making.Modules(str(library))
    order = kernel.in_order(("virtio_mmio", "virtio_console"), modules)
    archive = initramfs.agent_archive((tmp_path / "init").read_bytes(), [(n, modules[n]) for n in order])
    (tmp_path / "initramfs").write_bytes(archive)
    machine = microvm.machine()
    machine.initrd = str(tmp_path / "initramfs")
    if error is DeadlineExceeded:
        monkeypatch.setattr(templates, "BOOT", 5.0)
    with pytest.raises(error, match=words):
        templates.start(machine, directory=str(tmp_path / "templates"), confined=Confinement())
    assert [path.name for path in (tmp_path / "templates").iterdir()] == ["lock"]


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="no /dev/kvm")
def test_kvm_is_believed_when_a_guest_has_booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "here", lambda: "kvm")
    monkeypatch.setattr(probe, "_PATIENCE", 5.0)
    answer = probe.accelerator(str(tmp_path / "state"), confined=Confinement())
    (file,) = (tmp_path / "state").iterdir()
    assert file.read_text().split()[0] == answer
    flags = Path("/proc/cpuinfo").read_text().split("flags")[1].split("\n")[0].split()
    if "vmx" not in flags and "svm" not in flags:
        assert answer == "tcg"
    # the answer is kept: with other words in the file no guest is asked
    said = "kvm" if answer == "tcg" else "tcg"
    file.write_text(file.read_text().replace(answer, said, 1))
    assert probe.accelerator(str(tmp_path / "state")) == said
    file.write_text(f"{said} another QEMU")
    assert probe.accelerator(str(tmp_path / "state"), confined=Confinement()) == answer
