"""Limits, capabilities, security options, sysctls, rlimits, signals, names: what is refused, and how."""

from __future__ import annotations

import signal

import pytest

from nagaya.engine import limits, names, privileges, signals
from nagaya.engine.model import Resources, Ulimit
from nagaya.errors import InvalidArgument
from nagaya.linux.caps import NAMES
from nagaya.oci.defaults import CAPABILITIES

HELD = frozenset(NAMES) - {"CAP_SYS_RESOURCE"}


def caps(add: str = "", drop: str = "", *, privileged: bool = False) -> tuple[list[str], list[str]]:
    return privileges.capabilities(
        add.split(), drop.split(), privileged=privileged, default=CAPABILITIES, held=HELD
    )


def test_capabilities() -> None:
    assert caps()[0] == [c for c in NAMES if c in CAPABILITIES]
    assert "CAP_NET_ADMIN" in caps("net_admin")[0]
    assert "CAP_CHOWN" not in caps("", "CAP_CHOWN")[0]
    assert caps("", "all")[0] == []
    assert caps("kill", "ALL")[0] == ["CAP_KILL"]
    assert set(caps("ALL", "KILL")[0]) == HELD - {"CAP_KILL"}
    assert set(caps("", "", privileged=True)[0]) == HELD


def test_what_we_lack_is_said_and_never_given() -> None:
    for found in (caps("ALL"), caps(privileged=True)):
        assert "CAP_SYS_RESOURCE" not in found[0]
        assert [w for w in found[1] if "CAP_SYS_RESOURCE" in w]
    with pytest.raises(InvalidArgument, match="nagayad itself lacks CAP_SYS_RESOURCE"):
        caps("SYS_RESOURCE")


@pytest.mark.parametrize("where", ["add", "drop"])
def test_unknown_capability(where: str) -> None:
    with pytest.raises(InvalidArgument, match='unknown capability: "CAP_FLY"') as caught:
        caps("fly") if where == "add" else caps("", "fly")
    assert caught.value.subject == f"Cap{where.title()}"


def test_security_options() -> None:
    parse = privileges.security_options
    assert parse([], privileged=False) == privileges.Security("default", False)
    assert parse([], privileged=True).seccomp == "unconfined"
    assert parse(["no-new-privileges"], privileged=False).no_new_privileges
    assert parse(["no-new-privileges:true"], privileged=False).no_new_privileges
    assert not parse(["no-new-privileges=false"], privileged=False).no_new_privileges
    assert parse(
        ["seccomp=unconfined", "apparmor=unconfined", "label=disable"], privileged=False
    ).seccomp == ("unconfined")
    assert parse(['seccomp={"a":"b=c"}'], privileged=False).seccomp == '{"a":"b=c"}'
    assert parse(["apparmor=mine", "label=type:x"], privileged=False).apparmor == "mine"
    assert parse([], privileged=False).apparmor is None
    assert parse(["writable-cgroups=true"], privileged=False).writable_cgroups
    for bad in ("nonsense", "writable-cgroups=x", "no-new-privileges=maybe", "seccomp2=x"):
        with pytest.raises(InvalidArgument):
            parse([bad], privileged=False)


@pytest.mark.parametrize("text", ["{", "[]", "1", "[" * 100_000])
def test_a_profile_must_be_an_object(text: str) -> None:
    with pytest.raises(InvalidArgument, match="seccomp"):
        privileges.seccomp_document(text)


def test_sysctls() -> None:
    def parse(name: str, value: str = "1", **host: bool) -> dict[str, str]:
        return privileges.sysctls({name: value}, **{"host_network": False, "host_ipc": False, **host})

    assert parse("net.ipv4.ip_forward") == {"net.ipv4.ip_forward": "1"}
    assert parse("net/ipv4/conf/eth0/forwarding") == {"net.ipv4.conf.eth0.forwarding": "1"}
    assert parse("kernel.shmmax") == {"kernel.shmmax": "1"}
    for bad in ("kernel.core_pattern", "vm.swappiness", "net", "../net.x", "net.ipv4.x\n", "kernel/../net.x"):
        with pytest.raises(InvalidArgument, match="sysctl"):
            parse(bad)
    with pytest.raises(InvalidArgument):
        parse("net.ipv4.ip_forward", "1\nkernel.core_pattern=x")  # CVE-2022-0811's family
    with pytest.raises(InvalidArgument, match="network namespace"):
        parse("net.ipv4.ip_forward", host_network=True)
    with pytest.raises(InvalidArgument, match="IPC namespace"):
        parse("fs.mqueue.msg_max", host_ipc=True)


def test_rlimits() -> None:
    assert privileges.rlimits([Ulimit("RLIMIT_nofile", 1, 2)]) == [
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}
    ]
    with pytest.raises(InvalidArgument, match="invalid ulimit type: files"):
        privileges.rlimits([Ulimit("files", 1, 1)])
    with pytest.raises(InvalidArgument, match="3 > 2"):
        privileges.rlimits([Ulimit("nofile", 3, 2)])
    with pytest.raises(InvalidArgument):
        privileges.rlimits([Ulimit("core", -1, 2)])


@pytest.mark.parametrize(
    ("wanted", "subject"),
    [
        (Resources(memory=1024), "Memory"),
        (Resources(memory=-1), "Memory"),
        (Resources(memory_swap=1 << 30), "MemorySwap"),
        (Resources(memory=8 << 20, memory_swap=7 << 20), "MemorySwap"),
        (Resources(memory_swap=-2), "MemorySwap"),
        (Resources(memory_swappiness=101), "MemorySwappiness"),
        (Resources(memory=8 << 20, memory_reservation=9 << 20), "Memory"),
        (Resources(nano_cpus=3_000_000_000), "NanoCpus"),
        (Resources(nano_cpus=1), "NanoCpus"),
        (Resources(nano_cpus=1_000_000_000, cpu_quota=5000), "NanoCpus"),
        (Resources(nano_cpus=1_000_000_000, cpu_period=5000), "NanoCpus"),
        (Resources(cpu_period=999), "CpuPeriod"),
        (Resources(cpu_quota=999), "CpuQuota"),
        (Resources(blkio_weight=9), "BlkioWeight"),
        (Resources(cpuset_cpus="0-2"), "CpusetCpus"),
        (Resources(cpuset_cpus="a"), "CpusetCpus"),
        (Resources(cpuset_cpus="1-0"), "CpusetCpus"),
        (Resources(cpuset_cpus="0-99999999999999"), "CpusetCpus"),
        (Resources(cpuset_mems="1"), "CpusetMems"),
    ],
)
def test_limits_that_cannot_be(wanted: Resources, subject: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        limits.check(wanted, cpus={0, 1}, memory_nodes={0})
    assert caught.value.subject == subject


def test_limits_in_the_runtimes_words() -> None:
    assert limits.to_oci(Resources()) == {}
    everything = Resources(
        memory_reservation=7 << 20,
        memory_swappiness=0,
        oom_kill_disable=True,
        cpu_period=50_000,
        cpu_quota=25_000,
        cpuset_cpus="0",
        cpuset_mems="0",
        pids_limit=-1,
        blkio_weight=300,
    )
    assert limits.to_oci(everything) == {
        "memory": {"reservation": 7 << 20, "swappiness": 0, "disableOOMKiller": True},
        "cpu": {"period": 50_000, "quota": 25_000, "cpus": "0", "mems": "0"},
        "blockIO": {"weight": 300},
    }
    assert limits.parse_cpuset("0-2,5", "cpus") == {0, 1, 2, 5}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("KILL", 9),
        ("sigterm", 15),
        ("9", 9),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
        ("WINCH", 28),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert signals.number(text) == number


@pytest.mark.parametrize("text", ["", "NOPE", "0", "65", "99999", "-9", "RTMIN+99", "RTMIN+-1", "\u0669"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid signal"):
        signals.number(text)


@pytest.mark.parametrize("name", ["a", "-ab", ".ab", "a b", "a/b", "../x", "ab\n", "a" * 256, "", "é_x"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="Invalid container name"):
        names.check_name(name)


def test_names() -> None:
    assert names.check_name("/ok_1.2-3") == "ok_1.2-3"
    taken: set[str] = set()
    for _ in range(500):
        name = names.invent_name(taken.__contains__)
        assert names.check_name(name) == name
        assert name not in taken
        taken.add(name)
    assert names.is_id(names.new_id())
    assert not names.is_id(names.new_id() + "\n")
