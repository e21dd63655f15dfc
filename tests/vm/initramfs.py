"""An initramfs for the test machine: the host's Python, what the tests run, and this repository.

Format: cpio's "newc", Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from nagaya.vm import initramfs, kernel, making

ROOT = Path(__file__).resolve().parents[2]
GUEST_ROOT = "/nagaya"
GUEST_PACKAGES = f"{GUEST_ROOT}/site-packages"
_EMPTY = ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "etc", "bin", "sbin")
# pytest and the daemon, and what they import; pytest asks for pluggy's version
_PACKAGES = """
    pytest _pytest py.py pluggy* iniconfig packaging pygments msgspec h11 urllib3 isal backports jeepney
    grpclib google h2 hpack hyperframe multidict
""".split()
# util-linux's and procps' know more options than busybox'; the peers, where they are installed
_PROGRAMS = ("mount", "umount", "ps", "runc", "crun", "criu", "tar", "apparmor_parser")
# what criu, and the daemon's snapshots and networks, need of the kernel, and Debian's has as modules
_MODULES = """
    nf_tables unix_diag tcp_diag udp_diag af_packet_diag netlink_diag veth tun
    overlay bridge nft_chain_nat nft_nat nft_masq nft_ct nft_fib_ipv4 nf_conntrack_netlink
""".split()
_SYSTEMD = ("systemd", "libsystemd-shared", "dbus", "dbus-daemon", "dbus-system-bus-common")
# systemd starts what is asked for, and D-Bus; nothing else of a Debian
_NOT_STARTED = re.compile(
    r"^/(usr/)?(share/(doc|man|locale|bash-completion|zsh)|lib/systemd/system/[^/]*[.]wants)/"
)
_SYSTEMD_FILES = {
    "/etc/systemd/system.conf": "[Manager]\nDefaultTimeoutStartSec=infinity\n",
    "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "/etc/systemd/system/test-vm.service": """[Unit]
Requires=dbus.socket dbus.service
After=dbus.socket dbus.service
[Service]
Type=oneshot
ExecStart=/bin/busybox sh /init tests
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
""",
}
# SELinux: what the test's policy has rules of, and the kernel's initial labels in their order
# (security/selinux/include/initial_sid_to_string.h)
_CLASSES = {
    "process": "transition dyntransition setexec setkeycreate setcurrent",
    "process2": "nnp_transition nosuid_transition",
    "file": "entrypoint execute read write open getattr relabelfrom relabelto",
    "dir": "read search getattr relabelfrom relabelto",
    "filesystem": "mount relabelfrom relabelto associate",
    "key": "view read write search link setattr create",
}
_INITIAL_SIDS = """
    kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet
    icmp_socket tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix
    sysctl_vm sysctl_dev kmod policy scmp_packet devnull
""".split()
# parts of the standard library that no test needs
_NOT_NEEDED = re.compile(
    r"/(config-[^/]*|test|idlelib|lib2to3|tkinter|ensurepip|pydoc_data|distutils|turtledemo|"
    r"site-packages|dist-packages)(/|$)"
)


class Archive(initramfs.Archive):
    """An archive that takes files of the host."""

    def copy(self, source: str, path: str) -> None:
        """A file or link of the host. A .pyc is valid for its source's time: so times are kept."""
        status = os.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            self.put(path, status.st_mode, os.readlink(source).encode())
        elif stat.S_ISREG(status.st_mode):
            self.put(path, status.st_mode, Path(source).read_bytes(), int(status.st_mtime))

    def tree(self, source: str, path: str) -> None:
        """A file of the host, or a directory with all below it that is needed."""
        if os.path.isfile(source):
            self.copy(source, path)
        for top, _, names in os.walk(source):
            where = path + top[len(source) :]
            if not _NOT_NEEDED.search(f"{where[len(path) :]}/"):
                for name in names:
                    self.copy(f"{top}/{name}", f"{where}/{name}")


def libraries(files: Iterable[str]) -> set[str]:
    """The shared libraries that these programs and modules load, and their loader, by ldd(1)."""
    done = subprocess.run(["ldd", *files], capture_output=True, text=True, check=False)
    return set(re.findall(r"(?:=> |\t)(/\S+)", done.stdout))


def programs() -> dict[str, str]:
    """{path in the machine: path on the host} of the programs that are installed."""
    found = {f"/usr/bin/{name}": shutil.which(name) for name in _PROGRAMS}
    return {"/bin/busybox": "/bin/busybox"} | {path: host for path, host in found.items() if host}


def modules(image: Path) -> dict[str, bytes]:
    """The kernel's modules that are loaded, {name: content}, after those that they depend on; none where
    they are not beside the kernel."""
    version = image.name.partition("-")[2]
    every = making.Modules(str(image.parent.parent / "lib/modules" / version))
    return {name: every[name] for name in kernel.in_order(_MODULES, every)}


def _needed(interpreter: str, library: str, packages: list[Path]) -> Iterator[str]:
    yield interpreter
    yield from programs().values()
    # what they load is needed only if these are imported
    for directory in (Path(library, "lib-dynload"), *packages):
        for module in directory.glob("**/*.so"):
            yield str(module)


def _opened_by_name() -> Iterator[str]:
    """Libraries that ctypes opens."""
    for line in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout.splitlines():
        if line.split()[:1] == ["libnftables.so.1"]:
            yield line.split()[-1]


def _systemd() -> dict[str, str]:
    """{path in the machine: path on the host} of the files of systemd and of D-Bus. Raises
    subprocess.CalledProcessError when a package is not installed."""
    listed = subprocess.run(["dpkg", "-L", *_SYSTEMD], capture_output=True, text=True, check=True).stdout
    files = [f for f in listed.splitlines() if os.path.isfile(f) and not _NOT_STARTED.match(f)]
    return {file: file for file in files}


def _policy() -> bytes:
    """A policy of SELinux with which all is allowed, and labels are checked: checkpolicy(8) compiles it.

    Raises OSError, subprocess.CalledProcessError.
    """
    contexts = "nagt_u:nagt_r:nagt_t:s0"
    lines = [f"class {name}" for name in _CLASSES]
    lines += [f"sid {name}" for name in _INITIAL_SIDS]
    lines += [f"class {name} {{ {permissions} }}" for name, permissions in _CLASSES.items()]
    lines += ["sensitivity s0;", "dominance { s0 }", *(f"category c{n};" for n in range(4))]
    lines += ["level s0:c0.c3;", "mlsconstrain file read ( l1 dom l2 or l1 domby l2 or l1 incomp l2 );"]
    lines += ["policycap nnp_nosuid_transition;", "type nagt_t;", "type nagt_file_t;"]
    lines += ["role nagt_r;", "role nagt_r types { nagt_t nagt_file_t };"]
    lines += [f"allow nagt_t {{ nagt_t nagt_file_t }}:{name} *;" for name in _CLASSES]
    lines += ["user nagt_u roles { nagt_r } level s0 range s0 - s0:c0.c3;"]
    lines += [f"sid {name} {contexts}" for name in _INITIAL_SIDS]
    lines += [f"fs_use_trans {name} {contexts};" for name in ("tmpfs", "devpts", "mqueue", "ramfs")]
    lines += [f"genfscon {name} / {contexts}" for name in ("proc", "sysfs", "rootfs", "cgroup2", "selinuxfs")]
    with tempfile.TemporaryDirectory() as directory:
        source, policy = Path(directory, "policy.conf"), Path(directory, "policy")
        source.write_text("\n".join(lines) + "\n")
        words = ["checkpolicy", "-M", "-U", "allow", "-c", "33", "-o", str(policy), str(source)]
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
        return policy.read_bytes()


def build(command: str, image: Path, *, systemd: bool = False, selinux: bool = False) -> bytes:
    """The whole archive, for that kernel; the machine runs the shell command and ends. systemd: under
    this host's. selinux: with a policy.

    Raises OSError when a file of the host is missing.
    """
    archive = Archive()
    for name in _EMPTY:
        archive.put(f"/{name}", stat.S_IFDIR | 0o755)
    archive.put("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.put("/init", stat.S_IFREG | 0o755, (ROOT / "tests/vm/init").read_bytes())
    archive.put(f"{GUEST_ROOT}/command", stat.S_IFREG | 0o644, f"{command}\n".encode())
    archive.put(
        "/etc/passwd",
        stat.S_IFREG | 0o644,
        b"root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100::/:/bin/false\n",
    )
    archive.put("/var/run", stat.S_IFLNK | 0o777, b"../run")
    archive.put("/etc/group", stat.S_IFREG | 0o644, b"root:x:0:\nmessagebus:x:100:\n")
    interpreter, library = os.path.realpath(sys.executable), sysconfig.get_path("stdlib")
    site = Path(sysconfig.get_path("purelib"))
    packages = [path for name in _PACKAGES for path in site.glob(name)]
    needed = [*_needed(interpreter, library, packages), *_opened_by_name()]
    if selinux:
        archive.put(f"{GUEST_ROOT}/selinux", stat.S_IFREG | 0o644, _policy())
    if systemd:
        needed += _systemd().values()
        for place, text in _SYSTEMD_FILES.items():
            archive.put(place, stat.S_IFREG | 0o644, text.encode())
        for place, file in _systemd().items():
            archive.copy(file, place)
    for place, file in programs().items():
        archive.put(place, stat.S_IFREG | 0o755, Path(file).read_bytes())
    # /lib and /usr/lib are two directories here, one on most hosts: a library is found by either name
    for file in (interpreter, *_opened_by_name(), *libraries(needed)):
        archive.put(file, stat.S_IFREG | 0o755, Path(file).read_bytes())
    archive.tree(library, library)
    for path in packages:
        archive.tree(str(path), f"{GUEST_PACKAGES}/{path.name}")
    for name in ("src/nagaya", "scripts", "tests/support", "tests/runtime", "tests/vm"):
        archive.tree(str(ROOT / name), f"{GUEST_ROOT}/{name}")
    for index, (name, content) in enumerate(modules(image).items()):
        archive.put(f"/modules/{index:02}-{name}.ko", stat.S_IFREG | 0o644, content)
    # not tests/conftest.py: it is about hosts without root, and asks for more packages
    archive.copy(str(ROOT / "pyproject.toml"), f"{GUEST_ROOT}/pyproject.toml")
    archive.put("/bin/python3", stat.S_IFLNK | 0o777, interpreter.encode())
    return archive.to_bytes()
