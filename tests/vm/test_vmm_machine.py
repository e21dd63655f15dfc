"""nagaya-vmm with real machines: emulated processors, a stock kernel, its shell on the serial console."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vmm
from firecracker_api import OPERATIONS
from vmm import Vmm

from nagaya.vm import assets, kernel, making
from nagaya.vm.initramfs import Archive

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.skipif(bool(vmm.missing()), reason=vmm.missing())]
MIB = 1 << 20


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vmm.make_initrd(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Short paths: a socket's has at most 107 bytes."""
    made = Path(f"/tmp/nagt-vmm-{os.getpid()}-{tmp_path.name[-12:]}")
    made.mkdir()
    yield made
    shutil.rmtree(made)


def disk(path: Path, begin: bytes, size: int = 4 * MIB) -> str:
    path.write_bytes(begin)
    os.truncate(path, size)
    return str(path)


def drive(name: str, path: str, **more: Any) -> dict[str, Any]:
    return {"drive_id": name, "path_on_host": path, "is_root_device": False, **more}


def host(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(vmm.PATIENCE)
    client.connect(path)
    return client


def say(client: socket.socket, data: bytes) -> None:
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def wait_for(seen: Any, what: str) -> None:
    until = time.monotonic() + vmm.PATIENCE
    while not seen():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def test_devices(place: Path, initrd: Path) -> None:
    """Drives and their changes, entropy, balloon, metrics, pause, and the end by the guest's own word."""
    with Vmm(place / "a") as machine:
        limit = {"bandwidth": {"size": MIB, "refill_time": 1000}}
        machine.put("/drives/one", **drive("one", disk(place / "one", b"first")))
        machine.put("/drives/two", **drive("two", disk(place / "two", b"second"), is_read_only=True))
        machine.put("/drives/slow", **drive("slow", disk(place / "slow", b"s"), rate_limiter=limit))
        machine.put("/balloon", amount_mib=8, deflate_on_oom=True, stats_polling_interval_s=1)
        machine.put("/entropy")
        machine.put("/metrics", metrics_path=str(place / "metrics"))
        machine.boot(initrd)
        assert machine.get("/")["state"] == "Running"
        assert "cloud" in machine.shell("uname -r")
        assert machine.shell("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
        # in the order in which they were given
        assert machine.shell("head -c 5 /dev/vda; head -c 6 /dev/vdb; head -c 1 /dev/vdc") == "firstseconds"
        assert machine.shell("cat /sys/block/vda/ro /sys/block/vdb/ro").split() == ["0", "1"]

        machine.shell("echo guest | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null")
        assert (place / "one").read_bytes()[:5] == b"guest"
        machine.patch("/drives/one", drive_id="one", path_on_host=disk(place / "new", b"other", 6 * MIB))
        wait_for(lambda: machine.shell("cat /sys/block/vda/size") == str(6 * MIB // 512), "the new size")
        assert machine.shell("dd if=/dev/vda iflag=direct bs=512 count=1 2>/dev/null | head -c 5") == "other"
        machine.shell("echo again | dd of=/dev/vda conv=fsync,notrunc 2>/dev/null")
        assert (place / "new").read_bytes()[:5] == b"again" and (place / "one").read_bytes()[:5] == b"guest"
        machine.patch("/drives/two", drive_id="two", path_on_host=disk(place / "three", b"third"))
        assert machine.shell("dd if=/dev/vdb iflag=direct bs=512 count=1 2>/dev/null | head -c 5") == "third"
        larger = drive("two", disk(place / "large", b"l", 8 * MIB))
        del larger["is_root_device"]
        assert "a read-only drive cannot change" in machine.refused("PATCH", "/drives/two", larger)

        # 4 MiB at 1 MiB/s, of which the first comes at once
        read = (
            "cat /proc/uptime; dd if=/dev/vdc of=/dev/null bs=64k iflag=direct 2>/dev/null; cat /proc/uptime"
        )
        begin, end = (float(line.split()[0]) for line in machine.shell(read).splitlines())
        assert 2 < end - begin < 10
        machine.patch(
            "/drives/slow", drive_id="slow", rate_limiter={"bandwidth": {"size": 0, "refill_time": 0}}
        )
        begin, end = (float(line.split()[0]) for line in machine.shell(read).splitlines())
        assert end - begin < 2

        machine.patch("/balloon", amount_mib=24)
        wait_for(lambda: machine.get("/balloon/statistics")["actual_mib"] == 24, "the balloon")
        wait_for(lambda: "free_memory" in machine.get("/balloon/statistics"), "the guest's statistics")
        stats = machine.get("/balloon/statistics")
        assert stats["target_mib"] == 24 and stats["target_pages"] == 24 * 256
        assert 0 < stats["free_memory"] < stats["total_memory"] <= 128 * MIB

        # what follows shall not be short of memory
        machine.patch("/balloon", amount_mib=0)
        wait_for(lambda: machine.get("/balloon/statistics")["actual_mib"] == 0, "the balloon's end")

        machine.patch("/vm", state="Paused")
        machine.type("echo through\n")
        machine.patch("/vm", state="Paused")
        assert machine.get("/")["state"] == "Paused"
        machine.patch("/vm", state="Resumed")
        machine.read_until(b"through")

        machine.put("/actions", action_type="FlushMetrics")
        counted = json.loads((place / "metrics").read_text().splitlines()[-1])
        assert counted["block_slow"]["read_bytes"] >= 8 * MIB and counted["uart"]["write_count"] > 100
        assert counted["latencies_us"]["pause_vm"] > 0
        machine.type("reboot -f\n")
        assert machine.wait() == 0
    assert "exiting successfully" in (place / "a" / "log").read_text()


def test_qemu_is_nobody(place: Path, initrd: Path) -> None:
    with Vmm(place / "a") as machine:
        machine.boot(initrd)
        (qemu,) = machine.children()
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{qemu}/status").read_text().splitlines())
        assert all(int(uid) >= 0x60000000 for uid in status["Uid"].split())
        assert all(int(status[f"Cap{kind}"], 16) == 0 for kind in ("Prm", "Eff", "Inh", "Bnd", "Amb"))
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        for kind in ("mnt", "net", "pid", "user"):
            assert os.readlink(f"/proc/{qemu}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        # and when it dies, so do we, and say so
        os.kill(qemu, signal.SIGKILL)
        assert machine.wait() == 1
    assert "QEMU ended with -9" in (place / "a" / "log").read_text()


def test_vsock(place: Path, initrd: Path) -> None:
    path = str(place / "v.sock")
    with Vmm(place / "a") as machine:
        machine.put("/vsock", guest_cid=42, uds_path=path)
        machine.boot(initrd)
        assert "vhost" not in " ".join(os.listdir("/tmp"))
        machine.type("vs serve 52 &\n")
        machine.read_until(rb"serving\r?\n")
        with host(path) as client:
            client.sendall(b"CONNECT 52\n")
            assert client.recv(64) == b"OK 1073741824\n"
            data = os.urandom(1 << 20)
            sender = threading.Thread(target=say, args=(client, data))
            sender.start()
            back = b""
            while chunk := client.recv(1 << 16):
                back += chunk
            sender.join()
            assert back == data
        with host(path) as client:
            client.sendall(b"CONNECT 53\n")
            assert client.recv(64) == b""  # nobody listens
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{path}_99")
            listener.listen()
            listener.settimeout(vmm.PATIENCE)
            machine.type("vs call 99 ping\n")
            server, _ = listener.accept()
            with server:
                server.settimeout(vmm.PATIENCE)
                assert server.recv(64) == b"ping"
                server.sendall(b"pong")
            machine.read_until(rb"pong\r?\n")
        assert "Connection reset" in machine.shell("vs call 98 x")
        machine.patch("/vm", state="Paused")
        params = {"snapshot_path": "s", "mem_file_path": "m"}
        assert "QEMU cannot save one" in machine.refused("PUT", "/snapshot/create", params)
        machine.patch("/vm", state="Resumed")
        with host(path) as client:
            client.sendall(b"CONNECT 52\n")
            assert client.recv(64).startswith(b"OK ")
    assert not os.path.exists(path)


def test_snapshots(place: Path, initrd: Path) -> None:
    """Saved, going on, saved again; loaded twice at once, each with its own memory, and saved from there."""
    one, two = (
        {"snapshot_path": str(place / name), "mem_file_path": str(place / f"{name}-mem")}
        for name in ("one", "two")
    )
    with Vmm(place / "a") as machine:
        machine.put("/drives/d", **drive("d", disk(place / "disk", b"first"), is_read_only=True))
        machine.put("/balloon", amount_mib=8, deflate_on_oom=True)
        machine.boot(initrd)
        machine.shell("echo before > /run/word")
        machine.patch("/vm", state="Paused")
        machine.put("/snapshot/create", **one)
        shown = machine.get("/vm/config")
        assert os.stat(place / "one-mem").st_size == 128 * MIB
        assert os.stat(place / "one-mem").st_blocks * 512 < 126 * MIB  # holes stay holes
        machine.patch("/vm", state="Resumed")
        assert machine.shell("cat /run/word") == "before"
        machine.shell("echo after > /run/word")
        missing = {**two, "mem_file_path": "/nonexistent/m"}
        machine.patch("/vm", state="Paused")
        assert "No such file" in machine.refused("PUT", "/snapshot/create", missing)
        assert not (place / "two").exists()
        machine.put("/snapshot/create", **two)

    def load(saved: dict[str, str]) -> dict[str, Any]:
        backend = {"backend_type": "File", "backend_path": saved["mem_file_path"]}
        return {"snapshot_path": saved["snapshot_path"], "mem_backend": backend}

    with Vmm(place / "b") as first, Vmm(place / "c") as second:
        first.put("/snapshot/load", **load(one))
        assert first.get("/")["state"] == "Paused"
        assert first.get("/vm/config") == shown
        first.patch("/vm", state="Resumed")
        second.put("/snapshot/load", **load(one), resume_vm=True)
        for machine, word in ((first, "first"), (second, "second")):
            assert machine.shell(f"cat /run/word; echo {word} > /run/word; head -c 5 /dev/vda").split() == [
                "before",
                "first",
            ]
        assert [first.shell("cat /run/word"), second.shell("cat /run/word")] == ["first", "second"]
        first.patch("/balloon", amount_mib=16)
        wait_for(lambda: first.shell("echo up") == "up", "the guest")
        second.patch("/vm", state="Paused")
        second.put("/snapshot/create", **one)  # over the one it came from
    for saved, word in ((one, "second"), (two, "after")):
        with Vmm(place / "d") as machine:
            machine.put("/snapshot/load", **load(saved), resume_vm=True)
            assert machine.shell("cat /run/word") == word
    assert vmm.run("--describe-snapshot", str(place / "one")).stdout == "v1.0.0\n"

    state = (place / "one").read_bytes()
    (place / "cut").write_bytes(state[: len(state) // 2])
    first_line, _, rest = state.partition(b"\n")
    (place / "odd").write_bytes(
        first_line + b'\n{"drives": 5, "network-interfaces": [1], "boot-source": {}}\n' + rest
    )
    (place / "deep").write_bytes(first_line + b"\n" + b"[" * 100000 + b"\n")
    (place / "two-mem").write_bytes(b"short")
    for wrong, words in (
        ({**one, "snapshot_path": str(place / "cut")}, "load of migration failed"),
        ({**one, "snapshot_path": str(place / "odd")}, "the snapshot's beginning is broken"),
        ({**one, "snapshot_path": str(place / "deep")}, "the snapshot's beginning is broken"),
        ({**two, "snapshot_path": str(place / "nothing")}, "No such file or directory (os error 2)"),
        ({**two, "snapshot_path": str(place / "two-mem")}, "not a snapshot of nagaya-vmm's"),
        (two, f"not {128 * MIB} bytes"),
    ):
        with Vmm(place / "e") as machine:
            said = machine.refused("PUT", "/snapshot/load", load(wrong))
            assert words in said and said.startswith("Load snapshot error: Failed to restore from snapshot:")
            assert machine.wait() == 1  # Firecracker ends, too


def test_a_configuration_file(place: Path, initrd: Path) -> None:
    """With a root file system, no API, and the console in a file; the guest ends it by its reset."""
    tree = place / "tree"
    for name in ("bin", "dev", "proc"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin")
    (tree / "bin" / "init").write_text("#!/bin/busybox sh\necho from the disk: $(/bin/busybox cat /word)\n")
    (tree / "word").write_text("erofs\n")
    os.chmod(tree / "bin" / "init", 0o755)
    vmm.command("mkfs.erofs", "-zlz4", str(place / "root.erofs"), str(tree))
    config = {
        "boot-source": {
            "kernel_image_path": assets.find().kernel,
            "initrd_path": str(initrd),
            "boot_args": f"{vmm.BOOT_ARGS} test=root",
        },
        "drives": [drive("rootfs", str(place / "root.erofs"), is_root_device=True, is_read_only=True)],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 128},
    }
    (place / "config").write_text(json.dumps(config))
    done = vmm.run("--no-api", "--config-file", str(place / "config"), "--boot-timer", "--enable-pci")
    assert done.returncode == 0, done.stderr
    assert "from the disk: erofs" in done.stdout and "root=/dev/vda ro" in done.stdout

    for change, words in (
        (
            {"boot-source": {"kernel_image_path": "/nonexistent"}},
            "The kernel file cannot be opened: No such file",
        ),
        (
            {"machine-config": {"vcpu_count": 2}},
            "Invalid JSON: missing field `mem_size_mib` at line 1 column",
        ),
        ({"pmem": [{"id": "p", "path_on_host": "p"}]}, "not supported: pmem devices"),
    ):
        (place / "config").write_text(json.dumps({**config, **change}))
        done = vmm.run("--no-api", "--config-file", str(place / "config"))
        assert done.returncode == 152 and words in done.stderr, done


def test_what_cannot_start(place: Path) -> None:
    with Vmm(place / "a") as machine:
        (place / "kernel").write_bytes(b"no kernel at all")
        machine.put("/boot-source", kernel_image_path=str(place / "kernel"))
        assert "QEMU does not start" in machine.refused("PUT", "/actions", {"action_type": "InstanceStart"})
        machine.put("/machine-config", vcpu_count=1, mem_size_mib=16)
        assert "too little" in machine.refused("PUT", "/actions", {"action_type": "InstanceStart"})
        machine.put("/vsock", guest_cid=3, uds_path="/nonexistent/v.sock")
        said = machine.refused("PUT", "/actions", {"action_type": "InstanceStart"})
        assert "No such file or directory" in said
        assert machine.get("/")["state"] == "Not started"
        assert machine.children() == []


def test_network_and_metadata(place: Path, initrd: Path) -> None:
    """In a network namespace of its own: a card on a tap, metadata by token, limits and their change."""
    argv = ["unshare", "--net", str(vmm.LAUNCHER), "--api-sock", str(place / "api.sock")]
    with Vmm(place / "a", argv=argv, api=str(place / "api.sock")) as machine:
        inside = ("nsenter", "--net", f"--target={machine.process.pid}")
        address, mac = "169.254.169.254", "06:00:00:00:00:05"
        card = {"iface_id": "eth0", "host_dev_name": "t0", "guest_mac": mac, "mtu": 1400}
        machine.put("/network-interfaces/eth0", **card)
        for line in ("addr add 10.231.78.1/24 dev t0", "link set t0 up", "link set lo up"):
            vmm.command(*inside, "ip", *line.split())
        machine.put("/mmds/config", network_interfaces=["eth0"], version="V2")
        machine.put("/mmds", latest={"meta-data": {"id": "i-123"}})
        machine.put("/metrics", metrics_path=str(place / "metrics"))
        machine.boot(initrd)
        assert machine.shell("cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu").split() == [
            mac,
            "1400",
        ]
        machine.shell(
            "ip addr add 10.231.78.2/24 dev eth0; ip link set eth0 up; ip route add default dev eth0"
        )
        assert "401 Unauthorized" in machine.shell(f"wget -O - http://{address}/latest/meta-data/id")
        put = r"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nConnection: close"
        put += r"\r\nX-metadata-token-ttl-seconds: 60"
        token = machine.shell(f"printf '{put}\\r\\n\\r\\n' | nc {address} 80").splitlines()[-1]
        read = f"wget -q -O - --header 'X-metadata-token: {token}' http://{address}/latest/meta-data/id"
        assert machine.shell(read) == "i-123"
        machine.patch("/mmds", latest={"meta-data": {"id": "i-456"}})
        assert machine.shell(read) == "i-456"

        # to the host itself, past the service
        (place / "www").mkdir()
        (place / "www" / "blob").write_bytes(bytes(200000))
        words = ["-m", "http.server", "7777", "--bind", "10.231.78.1", "--directory", str(place / "www")]
        server = subprocess.Popen([*inside, sys.executable, *words], stderr=subprocess.DEVNULL)
        fetch = "wget -q -O - http://10.231.78.1:7777/blob | wc -c"
        wait_for(lambda: machine.shell(fetch) == "200000", "the host's server")
        server.kill()
        server.wait()

        limit = {"bandwidth": {"size": 100000, "refill_time": 1000}, "ops": {"size": 50, "refill_time": 100}}
        assert "limit" not in vmm.command(*inside, "nft", "list", "ruleset").stdout
        machine.patch(
            "/network-interfaces/eth0", iface_id="eth0", rx_rate_limiter=limit, tx_rate_limiter=limit
        )
        rules = vmm.command(*inside, "nft", "list", "ruleset").stdout
        assert rules.count("limit rate over 100000 bytes/second burst 100000 bytes") == 2
        assert rules.count("limit rate over 30000/minute burst 50 packets") == 2 and address in rules
        assert machine.shell(read) == "i-456"
        machine.put("/actions", action_type="FlushMetrics")
        counted = json.loads((place / "metrics").read_text().splitlines()[-1])["mmds"]
        assert counted["rx_accepted"] > 10 and counted["rx_no_token"] == 1
        machine.type("reboot -f\n")
        assert machine.wait() == 0


def test_jail(place: Path, initrd: Path) -> None:
    """A user and a root of its own; files are found in there, and QEMU has no rights at all."""
    base = place / "jails"
    root = base / "nagaya-vmm" / "jailed-1" / "root"
    root.mkdir(parents=True)
    shutil.copy(assets.find().kernel, root / "kernel")
    shutil.copy(initrd, root / "initrd")
    disk(root / "disk", b"inside")
    os.chown(root / "disk", 54321, 54321)
    own = ["--id", "jailed-1", "--uid", "54321", "--gid", "54321", "--chroot-base-dir", str(base)]
    words = [str(vmm.LAUNCHER), "jailer", *own, "--resource-limit", "no-file=512", "--"]
    api = str(root / "api.sock")
    argv = ["unshare", "--net", *words, "--api-sock", "/api.sock"]
    (place / "a").mkdir()
    with Vmm(place / "a", argv=argv, api=api, log="/log") as machine:
        machine.put("/drives/d", **drive("d", "/disk"))
        machine.put("/vsock", guest_cid=7, uds_path="/v.sock")
        machine.put("/network-interfaces/e", iface_id="e", host_dev_name="t0")
        machine.put("/mmds/config", network_interfaces=["e"])
        machine.put("/mmds", word="known")
        inside = ("nsenter", "--net", f"--target={machine.process.pid}")
        vmm.command(*inside, "ip", "link", "set", "t0", "up")
        assert "No such file" in machine.refused("PUT", "/drives/x", drive("x", str(place)))
        machine.boot("/initrd", kernel="/kernel")
        assert machine.shell("head -c 6 /dev/vda") == "inside"
        machine.shell("ip addr add 10.231.79.2/24 dev eth0; ip link set eth0 up")
        machine.shell("ip route add default dev eth0")
        assert machine.shell("wget -q -O - http://169.254.169.254/word") == "known"
        machine.type("vs serve 52 &\n")
        machine.read_until(rb"serving\r?\n")
        with host(str(root / "v.sock")) as client:
            client.sendall(b"CONNECT 52\n")
            assert client.recv(64).startswith(b"OK ")
        (qemu,) = machine.children()
        for pid, kept in ((machine.process.pid, 0x3000), (qemu, 0)):
            status = dict(x.split(":\t", 1) for x in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert set(status["Uid"].split()) == {"54321"} and status["Groups"].strip() == ""
            assert all(int(status[f"Cap{kind}"], 16) == kept for kind in ("Prm", "Eff"))
            assert status["NoNewPrivs"] == "1"
            assert os.stat(f"/proc/{pid}/root").st_ino == root.stat().st_ino
            assert "512" in Path(f"/proc/{pid}/limits").read_text().split("Max open files")[1][:40]
        machine.patch("/vm", state="Paused")
        machine.patch("/vm", state="Resumed")
        machine.type("reboot -f\n")
        assert machine.wait() == 0
    for more, said in (
        (["--id", "a_b"], "Invalid char (_) at position 1"),
        (["--resource-limit", "x=1"], "Invalid resource limit"),
        (["--parent-cgroup", "../x"], "Invalid parent cgroup"),
        (["--cgroup", "nodot=1"], "Invalid format for cgroups"),
        (["--netns", "/nonexistent"], "/nonexistent: No such file or directory"),
    ):
        done = vmm.run("jailer", *own, *more)
        assert done.returncode == 1 and said in done.stderr, done


def test_a_guest_that_floods_its_console(place: Path, initrd: Path) -> None:
    """Nobody reads it, and the API answers; and when nagaya-vmm is killed, QEMU goes with it."""
    with Vmm(place / "a") as machine:
        machine.put("/metrics", metrics_path=str(place / "metrics"))
        machine.boot(initrd)
        machine.type("yes flood &\n")

        def dropped() -> bool:
            machine.put("/actions", action_type="FlushMetrics")
            lines = [json.loads(line) for line in (place / "metrics").read_text().splitlines()]
            return any(line.get("uart", {}).get("missed_write_count") for line in lines)

        wait_for(dropped, "output that found no reader")
        machine.patch("/vm", state="Paused")
        assert machine.get("/")["state"] == "Paused"
        (qemu,) = machine.children()
        machine.process.kill()
        machine.process.wait(vmm.PATIENCE)
        wait_for(lambda: not os.path.exists(f"/proc/{qemu}"), "QEMU's end")
        os.unlink(machine.path)


def test_the_console_in_a_file(place: Path, initrd: Path) -> None:
    with Vmm(place / "a") as machine:
        limit = {"size": 1500, "refill_time": 3600000, "one_time_burst": 500}
        machine.put("/serial", serial_out_path=str(place / "console"), rate_limiter=limit)
        machine.put("/metrics", metrics_path=str(place / "metrics"))
        boot = {"kernel_image_path": assets.find().kernel, "initrd_path": str(initrd)}
        machine.put("/boot-source", **boot, boot_args="console=ttyS0 reboot=t panic=-1 rdinit=/nothing")
        machine.put("/actions", action_type="InstanceStart")
        assert machine.wait() == 0  # a kernel without init panics, and resets
        counted = json.loads((place / "metrics").read_text().splitlines()[-1])["uart"]
    text = (place / "console").read_bytes()
    assert 2000 <= len(text) <= 2010 and b"Linux version" in text
    assert counted["rate_limiter_dropped_bytes"] > 1000


def test_power_button(place: Path, initrd: Path) -> None:
    """What stands for Ctrl+Alt+Del reaches the guest as a key, where it has the drivers for it."""
    found = [making.find_kernel("cloud", str(vmm.ROOT / "build/vm"))[1]]
    modules = making.Modules(found[0])
    archive = Archive()
    for name in kernel.in_order(["button", "evdev"], modules):
        archive.put(f"/modules/zz-{name}.ko", 0o100644, modules[name])
    larger = place / "initrd"
    larger.write_bytes(initrd.read_bytes() + archive.to_bytes())
    with Vmm(place / "a") as machine:
        machine.boot(larger)
        machine.shell("cat /dev/input/event0 > /run/keys & true")

        def pressed() -> bool:
            machine.put("/actions", action_type="SendCtrlAltDel")
            # struct input_event: EV_KEY, KEY_POWER, pressed
            return machine.shell("head -c 24 /run/keys | od -An -tu2 -j16").split() == ["1", "116", "1", "0"]

        wait_for(pressed, "the key")


ODD: list[Any] = [None, True, 0, -1, 2**63, 1.5, "", "a", "/dev/null", "x" * 300, [], {}, [{}], ["eth0"]]


def mutated(chance: random.Random, body: dict[str, Any], path: str) -> dict[str, Any]:
    result = dict(body)
    for key in body:
        what = chance.random()
        if what < 0.12:
            result[key] = chance.choice(ODD)
        elif what < 0.2:
            del result[key]
        elif key == "path_on_host":
            result[key] = path
    return result


def test_no_requests_end_it(place: Path) -> None:
    """Whatever is asked for, before and after the start: an answer, at worst that of a client's fault."""
    chance = random.Random(7)
    argv = ["unshare", "--net", str(vmm.LAUNCHER), "--api-sock", str(place / "api.sock")]
    path = disk(place / "disk", b"")
    statuses = set()
    with Vmm(place / "a", argv=argv, api=str(place / "api.sock")) as machine:
        for number in range(400):
            method, where, body, _, action = chance.choice(OPERATIONS)
            if where in ("/logger", "/snapshot/load") or (action == "start" and number < 100):
                continue
            if number % 100 == 50:
                # a kernel that has no root panics, and shall stay
                body = {"kernel_image_path": assets.find().kernel, "boot_args": "panic=0"}
                method, where = "PUT", "/boot-source"
            elif isinstance(body, dict) and action != "start":
                body = mutated(chance, body, path)
            status, answer, _ = machine.request(method, where, body)
            assert status in (200, 204, 400, 413), (method, where, body, answer)
            statuses.add((status, machine.get("/")["state"]))
        assert machine.process.poll() is None, machine.stderr()
    assert {(204, "Not started"), (400, "Not started"), (400, "Running")} <= statuses
    assert machine.stderr() == ""
