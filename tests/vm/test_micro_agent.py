"""What the agent can do for containers, each in one guest that all these tests share."""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import microvm
import pytest
from microvm import Client, mount

from nagaya.errors import CommandNotExecutable, KernelError, NotFound
from nagaya.linux import bpf, mounts, netlink, seccomp
from nagaya.linux import namespaces as ns
from nagaya.runtime.cgroups import devices
from nagaya.vm import assets, protocol, templates
from nagaya.vm.confine import Confinement
from nagaya.vm.protocol import Exit, Output

pytestmark = [pytest.mark.root, pytest.mark.vm]


def _installed() -> bool:
    try:
        return bool(assets.find() and assets.find_qemu())
    except NotFound:
        return False


pytestmark.append(pytest.mark.skipif(not _installed(), reason="./dev vm was not run"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("templates")
    started = templates.start(microvm.machine(), directory=str(directory), confined=Confinement())
    try:
        client = Client(started.vm.agent, ready=True, vm=started.vm)
        client.call("renew", time=time.time_ns(), seed=os.urandom(64))
        microvm.put_root(client)
        yield client
        assert client.call("ping") == {"version": b"1"}
        left = [(type(event).__name__, getattr(event, "process", 0)) for event in client.seen]
        assert not left
    finally:
        started.vm.close()
        shutil.rmtree(directory)


@pytest.fixture
def box(client: Client) -> Iterator[str]:
    """A container that sleeps."""
    name = f"box{client.number()}"
    process = client.start(name, "sleep", "10000")
    yield name
    client.call("signal", process=process, signal=9)
    assert client.finish(process).code == 137
    client.remove(name)


def run(client: Client, *words: str, stdin: bytes | None = None, **more: microvm.Value) -> microvm.Result:
    """A container for one command."""
    name = f"once{client.number()}"
    fields: microvm.Fields = [("stdin", 1)] if stdin is not None else []
    process = client.start(name, *words, fields=fields, **more)
    result = client.finish(process, stdin=stdin or b"", terminal="terminal" in more)
    client.remove(name)
    return result


def test_output_waits_for_who_reads_it(client: Client, box: str) -> None:
    """A process that writes more than the window stands still, and nothing is lost."""
    process = client.number()
    words: microvm.Fields = [("arg", word) for word in ("dd", "if=/dev/zero", "bs=1000", "count=3000")]
    client.call("exec", [("process", process), ("container", box), ("env", "PATH=/bin"), *words])
    came: list[Output] = []
    for event in client.events():
        if isinstance(event, Output):
            came.append(event)
        if sum(len(event.data) for event in came) == protocol.WINDOW:
            break
    time.sleep(0.3)
    client.call("ping")
    assert not client.seen
    client.seen = [*came]
    assert len(client.finish(process).out) == 3_000_000


def test_a_terminal(client: Client, box: str) -> None:
    process = client.number()
    words: microvm.Fields = [
        ("arg", "sh"),
        ("arg", "-c"),
        ("arg", "tty; stty size; read x; stty size; exit 3"),
    ]
    fields: microvm.Fields = [("process", process), ("container", box), ("env", "PATH=/bin"), ("stdin", 1)]
    client.call("exec", [*fields, *words, ("terminal", "24 80")])
    out = b""
    for event in client.events():
        assert isinstance(event, Output)
        out += event.data
        if b"24 80" in out:
            break
    client.call("resize", process=process, rows=50, columns=132)
    result = client.finish(process, stdin=b"\n", terminal=True)
    assert out.startswith(b"/dev/pts/")
    assert b"50 132" in result.out
    assert result.code == 3


def test_a_console(client: Client) -> None:
    result = run(client, "sh", "-c", "echo to > /dev/console; tty", terminal="10 20", stdin=b"")
    assert result.out.startswith(b"to\r\n/dev/pts/0\r\n")


@pytest.mark.parametrize("signal", [15, 9, 10])
def test_signals_reach_an_exec(client: Client, box: str, signal: int) -> None:
    process = client.number()
    fields: microvm.Fields = [("process", process), ("container", box), ("env", "PATH=/bin")]
    client.call("exec", [*fields, ("arg", "sleep"), ("arg", "1000")])
    client.call("signal", process=process, signal=signal)
    assert client.finish(process).code == 128 + signal
    with pytest.raises(KernelError, match="no such process"):
        client.call("signal", process=process, signal=signal)


def test_all_processes_of_a_container_are_killed_with_it(client: Client) -> None:
    process = client.start("many", "sh", "-c", "sleep 1000 & sleep 1000 & wait")
    execed = client.number()
    fields: microvm.Fields = [("process", execed), ("container", "many"), ("env", "PATH=/bin")]
    client.call("exec", [*fields, ("arg", "sleep"), ("arg", "1000")])
    until = time.monotonic() + microvm.PATIENCE
    names: list[bytes] = []
    while names.count(b"sleep") < 3 and time.monotonic() < until:  # they may be between fork and execve
        states = client.call_all("ps", container="many")
        names = [value.split(b"\0")[0] for key, value in states if key == "cmdline"]
    assert sorted(names) == [b"sh", b"sleep", b"sleep", b"sleep"]
    assert [key for key, _ in states] == ["stat", "status", "cmdline"] * 4
    client.call("signal", process=process, signal=9, all=1)
    assert client.finish(execed).code == 137
    assert client.finish(process).code == 137
    client.remove("many")
    with pytest.raises(KernelError):
        client.call("ps", container="many")


def test_identity(client: Client) -> None:
    fields: microvm.Fields = [("group", 5), ("group", 7), ("rlimit", "7 100 200")]
    script = "id; umask; ulimit -n; grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNew' /proc/self/status; pwd; echo $HOME"
    more: dict[str, microvm.Value] = {
        "uid": 1000,
        "gid": 1001,
        "umask": 0o27,
        "cwd": "/made/it",
        "nnp": 1,
    }
    name = f"once{client.number()}"
    caps = "00000000a80425fb 2000 2000 0 0"
    process = client.start(name, "busybox", "sh", "-c", script, fields=fields, caps=caps, **more)
    lines = client.finish(process).out.decode().split("\n")
    client.remove(name)
    assert lines[0] == "uid=1000 gid=1001 groups=5,7"
    assert lines[1:3] == ["0027", "100"]
    assert [line.split()[-1] for line in lines[3:8]] == [
        "0" * 16,
        "0" * 16,
        "00000000a80425fb",
        "0" * 16,
        "1",
    ]
    assert lines[8:10] == ["/made/it", "/"]


def test_capabilities_of_root(client: Client) -> None:
    got = run(client, "cat", "/proc/self/status", caps="a80425fb a80425fb a80425fb 0 0").out.decode()
    values = dict(line.split(":\t", 1) for line in got.splitlines() if line.startswith("Cap"))
    assert int(values["CapEff"], 16) == int(values["CapBnd"], 16) == 0xA80425FB


def test_a_filter_of_system_calls(client: Client) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
    }
    program = seccomp.compile_profile(profile)
    for nnp in (0, 1):
        result = run(client, "sh", "-c", "busybox mkdir /tmp/x", seccomp=program, nnp=nnp)
        assert b"Function not implemented" in result.err
        assert result.code == 1


def test_what_is_masked_and_read_only(client: Client) -> None:
    fields: microvm.Fields = [
        ("mask", "/proc/kcore"),
        ("mask", "/tmp"),
        ("mask", "/not/there"),
        ("protect", "/proc/sys"),
        ("protect", "/etc"),
        ("protect", "/dev"),
        ("sysctl", "kernel/shm_rmid_forced=1"),
    ]
    client.call("write", path=f"{microvm.ROOT}/tmp/secret", data=b"x")
    script = (
        "cat /proc/kcore | wc -c; ls /tmp | wc -l; echo 0 > /proc/sys/kernel/shm_rmid_forced; "
        "touch /etc/x; touch /dev/x; touch /x; echo > /dev/null; cat /proc/sys/kernel/shm_rmid_forced"
    )
    name = f"once{client.number()}"
    process = client.start(name, "sh", "-c", script, fields=fields, readonly=1)
    result = client.finish(process)
    client.remove(name)
    assert result.out.split() == [b"0", b"0", b"1"]
    assert result.err.count(b"Read-only file system") == 4


def test_limits_and_the_kill_for_lack_of_memory(client: Client) -> None:
    fields: microvm.Fields = [("limit", "memory.max=16777216"), ("limit", "pids.max=20")]
    name = f"once{client.number()}"
    process = client.start(name, "sleep", "1000", fields=fields)
    files = ["memory.max", "pids.max", "memory.current", "cpu.stat", "nonesuch"]
    answer = client.call_all("read", [("path", f"/sys/fs/cgroup/{name}/{file}") for file in files])
    assert [key for key, _ in answer] == ["data"] * 4 + ["error"]
    assert answer[0][1].strip() == b"16777216"
    result = client.run(name, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
    assert (result.code, result.oom) == (137, 1)
    client.call("write", path=f"/sys/fs/cgroup/{name}/memory.max", data=b"max")
    assert client.run(name, "dd", "if=/dev/zero", "of=/dev/null", "bs=20M", "count=1").code == 0
    assert client.run(name, "cat", "/sys/fs/cgroup/pids.max").out == b"20\n"
    client.call("signal", process=process, signal=9)
    client.finish(process)
    client.remove(name)


def test_the_machine_has_no_memory_left(client: Client, box: str) -> None:
    """Who takes it all is killed; neither the agent is, nor another container."""
    total = client.call("read", path="/proc/meminfo")["data"].split()[1]
    result = client.run(box, "dd", "if=/dev/zero", "of=/dev/null", f"bs={int(total) - 2048}k", "count=1")
    assert (result.code, result.oom) == (137, 1), result.err
    assert client.run(box, "echo", "on").out == b"on\n"


def test_a_container_s_mounts(client: Client) -> None:
    client.call("write", path="/run/files/hosts", data=b"127.0.0.1 me\n", mode=0o640, uid=3, gid=4)
    client.call("mkdir", path="/run/files/volume", mode=0o700)
    # what links of the image say is followed inside the image's root alone
    client.call("symlink", path=f"{microvm.ROOT}/out", target="/../../../../run/files")
    script = "cat /new/etc/hosts; stat -c %a:%u:%g /new/etc/hosts; touch /v/x /r/x; ls /v; ls /run/files"
    bind = mounts.MS_BIND | mounts.MS_REC
    name = f"once{client.number()}"
    fields: microvm.Fields = [
        mount("", "/run/files/hosts", "/new/etc/hosts", bind | mounts.MS_RDONLY),
        mount("", "/run/files/volume", "/v", bind),
        mount("", "/run/files/volume", "/r", bind | mounts.MS_RDONLY),
        mount("tmpfs", "tmpfs", "/out/deep", mounts.MS_NOSUID, "size=1m"),
    ]
    process = client.start(name, "sh", "-c", script, fields=fields)
    result = client.finish(process)
    client.remove(name)
    client.call("remove", path=f"{microvm.ROOT}/out")
    assert result.out.split(b"\n")[:4] == [b"127.0.0.1 me", b"640:3:4", b"x", b"deep"]
    assert b"touch: /r/x: Read-only file system" in result.err
    assert client.call("read", path="/run/files/deep") == {"error": b"2"}


def test_the_guest_s_own_devices_are_not_the_container_s(client: Client) -> None:
    """With CAP_MKNOD, which containers have by default, the line to the agent and the disks have names."""
    rules = [devices.DENY_ALL, *devices.ALWAYS]
    script = "busybox mknod /dev/z c 1 5; busybox mknod /dev/p c $1 $2; head -c 1 /dev/z; exec 3<>/dev/p"
    for index in range(30):
        numbers = client.call("read", path=f"/sys/class/virtio-ports/vport{index}p1/dev")
        if "data" in numbers:
            break
    major, minor = numbers["data"].decode().strip().split(":")
    name = f"once{client.number()}"
    fields: microvm.Fields = [("devices", bpf.compile_devices(rules))]
    process = client.start(name, "sh", "-c", script, "sh", major, minor, fields=fields)
    result = client.finish(process)
    client.remove(name)
    assert result.out == b"\0"
    assert b"Operation not permitted" in result.err
    with pytest.raises(KernelError, match="devices: "):
        client.create(name, "true", devices=bytes(16))
    client.remove(name)


def test_a_pod_shares_processes(client: Client) -> None:
    first = client.start("pod-a", "sleep", "1000", hostname="pod")
    shared = f"{first} {ns.CLONE_NEWPID | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC}"
    own = ns.CLONE_NEWNS | ns.CLONE_NEWCGROUP
    second = client.create("pod-b", "sh", "-c", "hostname; ps; exit 5", join=shared, namespaces=own)
    client.call("start", process=second)
    result = client.finish(second)
    assert result.code == 5
    assert result.out.startswith(b"pod\n")
    assert b"sleep 1000" in result.out
    client.call("signal", process=first, signal=9)
    client.finish(first)
    client.remove("pod-a")
    client.remove("pod-b")


def test_ended_before_it_was_started(client: Client) -> None:
    process = client.create("early", "sleep", "1000")
    client.call("signal", process=process, signal=9)
    assert client.finish(process).code == 137
    with pytest.raises(KernelError, match="no such process waits"):
        client.call("start", process=process)
    client.remove("early")


def test_what_no_container_can_be(client: Client, box: str) -> None:
    with pytest.raises(KernelError, match="no such name"):
        client.create("a/b", "true")
    with pytest.raises(KernelError, match="no such name or number"):
        client.call("exec", [("process", 1), ("container", ".."), ("arg", "true")])
    with pytest.raises(KernelError, match="cgroup"):
        client.create("c9", "true", limit="memory.max=-5")
    client.remove("c9")
    with pytest.raises(CommandNotExecutable):
        client.run(box, "/proc")
    with pytest.raises(KernelError, match=r"cwd: /nonesuch"):
        client.run(box, "true", cwd="/nonesuch")
    with pytest.raises(KernelError, match="does not know"):
        client.call("fly")
    with pytest.raises(KernelError, match="mount"):
        client.create("c9", "true", fields=[mount("nonesuchfs", "x", "/x")])
    client.remove("c9")


def test_stdin_that_is_not_read(client: Client, box: str) -> None:
    """A process that ends without having read its stdin takes nothing with it."""
    result = client.run(box, "head", "-c", "5", stdin=b"0123456789" * 30_000)
    assert (result.code, result.out) == (0, b"01234")


def test_output_nobody_wants(client: Client, box: str) -> None:
    process = client.number()
    words: microvm.Fields = [("arg", w) for w in ("sh", "-c", "sleep 0.1; echo x; echo y >&2; exit 4")]
    client.call("exec", [("process", process), ("container", box), ("env", "PATH=/bin"), *words])
    client.call("close", process=process)
    result = client.finish(process)
    assert result.out == result.err == b""
    assert result.status is not None


def test_netlink(client: Client) -> None:
    message = struct.pack("=IHHII", 32, netlink.RTM_GETLINK, 0x301, 7, 0) + bytes(16)
    data = client.call("netlink", data=message)["data"]
    kinds = [kind for kind, _, _, _ in netlink.parse_messages(data)]
    assert kinds[0] == netlink.RTM_NEWLINK
    assert kinds[-1] == 3


def test_files_of_the_guest(client: Client) -> None:
    client.call("write", path="/run/deep/er/file", data=b"one")
    client.call("write", path="/run/deep/er/file", data=b"two", append=1)
    assert client.call("read", path="/run/deep/er/file") == {"data": b"onetwo"}
    client.call("remove", path="/run/deep/er/file")
    with pytest.raises(KernelError, match="No such file"):
        client.call("remove", path="/run/deep/er/file")
    with pytest.raises(KernelError, match="write: "):
        client.call("write", path="/proc/version/x", data=b"")
    client.call("mount", type="tmpfs", source="t", target="/run/deep/t", flags=0, data="size=1m")
    with pytest.raises(KernelError, match="No space left"):
        client.call("write", path="/run/deep/t/x", data=bytes(2 << 20))
    client.call("unmount", target="/run/deep/t", flags=0)


def test_many_at_once(client: Client, box: str) -> None:
    numbers = [client.number() for _ in range(20)]
    for number in numbers:
        words: microvm.Fields = [("arg", "sh"), ("arg", "-c"), ("arg", f"echo {number}; exit {number % 100}")]
        client.call("exec", [("process", number), ("container", box), ("env", "PATH=/bin"), *words])
    for number in reversed(numbers):
        result = client.finish(number)
        assert (result.out, result.code) == (f"{number}\n".encode(), number % 100)
    assert not any(isinstance(event, Exit) for event in client.seen)


def test_long_arguments(client: Client, box: str) -> None:
    fields: microvm.Fields = [("process", client.number()), ("container", box), ("env", "PATH=/bin")]
    fields += [("arg", "echo")] + [("arg", "x" * 100_000)] * 10 + [("env", f"V{n}=y") for n in range(2000)]
    client.call("exec", fields)
    assert len(client.finish(client.numbers).out) == 1_000_010


def test_the_agent_is_still_small(client: Client) -> None:
    status = client.call("read", path="/proc/1/status")["data"].decode()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert rss < 8192
    assert Path("/proc/self/exe").exists()
