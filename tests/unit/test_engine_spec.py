"""config.json as dockerd would compose it: whole for a plain container, by its differences for the rest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nagaya.engine import devices, limits, merge, spec
from nagaya.engine.model import (
    Container,
    ContainerConfig,
    ExecConfig,
    MountSpec,
    Resources,
    Ulimit,
)
from nagaya.engine.user import Identity
from nagaya.errors import InvalidArgument
from nagaya.oci import defaults, seccomp_default
from nagaya.oci.runtime import validate

ID = "0123456789ab" + "c" * 52
ROOT = Identity(0, 0, (0,), "/root")
FILES = {f"/etc/{name}": f"/host/{ID}/{name}" for name in ("resolv.conf", "hostname", "hosts")}


def composed(config: ContainerConfig | None = None, /, **around: Any) -> dict[str, Any]:
    config = config or ContainerConfig("busybox", command=("sh",))
    arguments = merge.argv(config)
    container = Container(ID, "name", config, path=arguments[0], args=arguments[1:], hostname=ID[:12])
    surroundings = {
        "identity": ROOT,
        "root": "/rootfs",
        "hostname": ID[:12],
        "capabilities": list(defaults.CAPABILITIES),
        "seccomp": seccomp_default.resolve(defaults.CAPABILITIES),
        "masked": defaults.MASKED_PATHS,
        "readonly": defaults.READONLY_PATHS,
        "mounts": [],
        "files": FILES,
        "device_rules": devices.rules([]),
        "cgroups_path": f"/nagaya/{ID}",
        "default_sysctls": defaults.SYSCTLS,
        **around,
    }
    found = spec.compose(container, spec.Surroundings(**surroundings))
    validate(found)  # whatever is composed, the runtime accepts it
    return found


def test_a_plain_container_is_dockers() -> None:
    found = composed()
    profile = found["linux"].pop("seccomp")
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]
    bind = ["rbind", "rprivate"]
    assert found == {
        "ociVersion": "1.0.2",
        "hostname": "0123456789ab",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOSTNAME=0123456789ab",
                "HOME=/root",
            ],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "oomScoreAdj": 0,
            "noNewPrivileges": False,
        },
        "root": {"path": "/rootfs", "readonly": False},
        "mounts": [
            {
                "destination": "/proc",
                "type": "proc",
                "source": "proc",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
            {
                "destination": "/sys/fs/cgroup",
                "type": "cgroup",
                "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/dev/mqueue",
                "type": "mqueue",
                "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
            },
            {
                "destination": "/etc/hostname",
                "type": "bind",
                "source": FILES["/etc/hostname"],
                "options": bind,
            },
            {"destination": "/etc/hosts", "type": "bind", "source": FILES["/etc/hosts"], "options": bind},
            {
                "destination": "/etc/resolv.conf",
                "type": "bind",
                "source": FILES["/etc/resolv.conf"],
                "options": bind,
            },
        ],
        "linux": {
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647",
            },
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *(
                        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
                        for major, minor in ((1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1))
                    ),
                    {"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                ]
            },
            "cgroupsPath": f"/nagaya/{ID}",
            "namespaces": [{"type": t} for t in ("mount", "network", "uts", "pid", "ipc", "cgroup")],
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/interrupts",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/sched_debug",
                "/proc/scsi",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/sys/devices/virtual/powercap",
                "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def test_two_containers_share_nothing() -> None:
    """One's environment must not reach another (CVE-2021-21334)."""
    first = composed()
    first["process"]["env"].append("SECRET=1")
    first["linux"]["resources"]["devices"].clear()
    first["mounts"][0]["options"].append("rw")
    assert "SECRET=1" not in composed()["process"]["env"]
    assert composed()["linux"]["resources"]["devices"]
    assert composed()["mounts"][0]["options"] == ["nosuid", "noexec", "nodev"]


def test_no_process_gets_inheritable_or_ambient_capabilities() -> None:
    """CVE-2022-24769; another user than root has nothing in effect."""
    assert set(composed()["process"]["capabilities"]) == {"bounding", "effective", "permitted"}
    user = composed(identity=Identity(1000, 1000, (1000,), "/home/u"))
    assert set(user["process"]["capabilities"]) == {"bounding"}
    assert user["process"]["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [1000]}
    assert "HOME=/home/u" in user["process"]["env"]


def test_a_terminal() -> None:
    process = composed(ContainerConfig("i", command=("sh",), tty=True))["process"]
    assert process["terminal"] is True
    assert "TERM=xterm" in process["env"]


def test_privileged_is_writable() -> None:
    found = composed(
        ContainerConfig("i", command=("sh",), privileged=True), masked=(), readonly=(), seccomp=None
    )
    options = {m["destination"]: m["options"] for m in found["mounts"]}
    assert "rw" in options["/sys"] and "rw" in options["/sys/fs/cgroup"]
    assert found["linux"]["maskedPaths"] == found["linux"]["readonlyPaths"] == []
    assert "seccomp" not in found["linux"]


def test_host_network_sets_none_of_its_sysctls() -> None:
    found = composed(
        ContainerConfig("i", command=("sh",), network_mode="host"), share=frozenset(("network", "uts"))
    )
    assert found["linux"]["sysctl"] == {}
    assert "hostname" not in found
    assert [n["type"] for n in found["linux"]["namespaces"]] == ["mount", "pid", "ipc", "cgroup"]


def test_namespaces_are_joined_by_path() -> None:
    found = composed(join={"network": "/run/n/net", "uts": "/proc/1/ns/uts"})
    assert {"type": "network", "path": "/run/n/net"} in found["linux"]["namespaces"]
    assert "hostname" not in found  # the joined namespace has its own


def test_init_is_pid_one() -> None:
    found = composed(init="/usr/bin/catatonit")
    assert found["process"]["args"] == ["/sbin/docker-init", "--", "sh"]
    mounted = [m for m in found["mounts"] if m["destination"] == "/sbin/docker-init"]
    assert [m["options"] for m in mounted] == [["bind", "ro"]]


def test_limits_and_devices() -> None:
    resources = limits.check(
        Resources(memory=64 << 20, nano_cpus=500_000_000, pids_limit=20, cpu_shares=512),
        cpus={0, 1},
        memory_nodes={0},
    )
    device = spec.Device("/dev/fuse", "c", 10, 229, 0o666, 0, 0, "rw")
    config = ContainerConfig(
        "i", command=("sh",), resources=resources, ulimits=(Ulimit("nofile", 10, 20), Ulimit("core", -1, -1))
    )
    found = composed(config, devices=[device], device_rules=devices.rules([device]))
    assert found["linux"]["resources"]["memory"] == {"limit": 64 << 20, "swap": 128 << 20}
    assert found["linux"]["resources"]["cpu"] == {"shares": 512, "period": 100_000, "quota": 50_000}
    assert found["linux"]["resources"]["pids"] == {"limit": 20}
    assert found["linux"]["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 10,
        "minor": 229,
        "access": "rw",
    }
    assert found["linux"]["devices"] == [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]
    assert found["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]


def test_default_ulimits_give_way_to_the_users() -> None:
    given = [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    config = ContainerConfig("i", command=("sh",), ulimits=(Ulimit("nofile", 10, 20),))
    assert composed(config, default_ulimits=given)["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]


def test_mounts_are_made_from_the_top_down() -> None:
    """A deep target must not be hidden by a shallow one that is mounted after it."""
    points = [
        MountSpec("bind", "/a/b/c", "/host/deep"),
        MountSpec("volume", "/a", "/host/vol", read_only=True),
        MountSpec("tmpfs", "/tmp", options=("size=1m", "exec")),
        MountSpec("bind", "/etc/hosts", "/host/hosts"),
    ]
    config = ContainerConfig("i", command=("sh",), tmpfs={"/run": "size=64k,mode=700"})
    found = composed(config, mounts=points)["mounts"][7:]
    assert [m["destination"] for m in found] == [
        "/a",
        "/run",
        "/tmp",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/a/b/c",
    ]
    by_target = {m["destination"]: m for m in found}
    assert by_target["/a"]["options"] == ["rbind", "rprivate", "rro"]
    assert by_target["/tmp"]["options"] == ["exec", "nosuid", "nodev", "size=1m"]
    assert by_target["/run"]["options"] == ["noexec", "nosuid", "nodev", "size=64k", "mode=700"]
    assert by_target["/etc/hosts"]["source"] == "/host/hosts"


def test_what_the_user_mounts_over_a_default_replaces_it() -> None:
    found = composed(mounts=[MountSpec("bind", "/dev", "/host/dev")])
    assert [m["destination"] for m in found["mounts"]].count("/dev") == 1
    assert not [m for m in found["mounts"] if m["destination"].startswith("/dev/")]


def test_shared_memory() -> None:
    none = composed(ContainerConfig("i", command=("sh",), ipc_mode="none"))
    assert not [m for m in none["mounts"] if m["destination"] == "/dev/shm"]
    small = composed(ContainerConfig("i", command=("sh",), shm_size=4096))
    assert [m["options"][-1] for m in small["mounts"] if m["destination"] == "/dev/shm"] == ["size=4096"]


@pytest.mark.parametrize("target", ["relative", "/", "/..", "/a/../..", "/x\0y"])
def test_bad_mount_targets(target: str) -> None:
    from nagaya.engine.spec_mounts import clean_target

    with pytest.raises(InvalidArgument):
        clean_target(target)


def test_bad_mount_options_are_named() -> None:
    with pytest.raises(InvalidArgument, match="uid0"):
        composed(ContainerConfig("i", command=("sh",), tmpfs={"/run": "uid0"}))
    with pytest.raises(InvalidArgument, match="propagation"):
        composed(mounts=[MountSpec("bind", "/a", "/b", propagation="sideways")])


def test_exec_has_the_containers_environment_and_limits() -> None:
    config = ContainerConfig(
        "i", command=("sh",), env=("A=1", "B=2"), working_dir="/w", ulimits=(Ulimit("nofile", 5, 5),)
    )
    container = Container(ID, "name", config, hostname="h")
    process = spec.exec_process(
        container,
        ExecConfig(("id",), env=("B=3", "C=4"), tty=True),
        Identity(1000, 100, (100, 7), "/home/u"),
        capabilities=list(defaults.CAPABILITIES),
    )
    assert process["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=h",
        "TERM=xterm",
        "A=1",
        "B=3",
        "C=4",
        "HOME=/home/u",
    ]
    assert process["cwd"] == "/w"
    assert process["user"] == {"uid": 1000, "gid": 100, "additionalGids": [100, 7]}
    assert set(process["capabilities"]) == {"bounding"}
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 5}]


def test_the_document_is_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(composed())) == composed()
