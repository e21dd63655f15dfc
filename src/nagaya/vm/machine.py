"""A microVM as plain data, and QEMU's command line for it. Nothing is opened or started here.

The machine is QEMU's `microvm` (docs/system/i386/microvm.rst): no PCI, virtio over MMIO, no firmware that
takes time. Its devices are announced by ACPI, as Debian's kernels know no
`virtio_mmio.device=` (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set). Nothing can be plugged in later:
whoever restores a saved machine gives it the same devices in the same order, with other files behind.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# with the second I/O APIC that ACPI brings (hw/i386/microvm.c)
MAX_DEVICES = 24
MAX_VCPUS = 32
MIN_MEMORY = 48  # MiB: Debian's cloud kernel and the agent start with less only sometimes
# What every drive of a saved machine seems to hold. The guest learns a drive's size once, so the file put
# behind it later must have this very size: ftruncate(2) makes it so, and the hole costs nothing.
STUB_SIZE = 64 << 30


class Drive:
    """A virtio-blk disk. `id` names it in the monitor. cache: "writeback", or "unsafe" (a flush of the
    guest's does nothing). throttle: QEMU's names, as {"bps-total": 2 << 20, "iops-total": 100}."""

    __slots__ = ("cache", "id", "path", "read_only", "throttle")

    def __init__(
        self,
        id: str,
        path: str,
        *,
        read_only: bool = True,
        cache: str = "unsafe",
        throttle: Mapping[str, int] | None = None,
    ) -> None:
        self.id = id
        self.path = path
        self.read_only = read_only
        self.cache = cache
        self.throttle = dict(throttle or {})


class Nic:
    """A virtio-net card on a tap: by the tap's name in QEMU's network namespace, or by a descriptor of it
    (fd >= 0). Neither: a card without a cable, to be given one when the machine is restored."""

    __slots__ = ("fd", "id", "mac", "mtu", "tap")

    def __init__(self, id: str, *, tap: str = "", fd: int = -1, mac: str = "", mtu: int = 0) -> None:
        self.id = id
        self.tap = tap
        self.fd = fd
        self.mac = mac
        self.mtu = mtu


class Port:
    """A virtio-serial port: a byte stream to the guest, which finds it by `name`. fd: a connected socket
    that QEMU inherits; else QEMU listens on the Unix socket `path`; neither: the engine's own
    channel."""

    __slots__ = ("fd", "name", "path")

    def __init__(self, name: str, *, fd: int = -1, path: str = "") -> None:
        self.name = name
        self.fd = fd
        self.path = path


class Share:
    """A directory of the host that the guest mounts by 9p under `tag`. Files are made as the ids the guest
    says, as far as QEMU's own rights go."""

    __slots__ = ("path", "read_only", "tag")

    def __init__(self, tag: str, path: str, *, read_only: bool = False) -> None:
        self.tag = tag
        self.path = path
        self.read_only = read_only

    def at(self, path: str) -> Share:
        """The same with its directory elsewhere."""
        return Share(self.tag, path, read_only=self.read_only)


class Vsock:
    """A virtio-vsock device whose backend speaks vhost-user on the Unix socket `path`. The backend must see
    the guest's memory: such a machine needs `Memory.shared`."""

    __slots__ = ("cid", "path")

    def __init__(self, cid: int, path: str) -> None:
        self.cid = cid
        self.path = path

    def at(self, path: str) -> Vsock:
        """The same with its backend's socket elsewhere."""
        return Vsock(self.cid, path)


class Memory:
    """The guest's RAM: `mib`, in the file `path`, or anonymous where there is none. shared: what the guest
    writes reaches the file (to save a machine, or for a vhost-user backend); else it stays private, a copy of
    each page that is written (a restored machine)."""

    __slots__ = ("mib", "path", "shared")

    def __init__(self, mib: int, *, path: str = "", shared: bool = False) -> None:
        self.mib = mib
        self.path = path
        self.shared = shared

    def at(self, path: str) -> Memory:
        """The same with its file elsewhere."""
        return Memory(self.mib, path=path, shared=self.shared)


class Balloon:
    """A virtio-balloon: `deflate_on_oom` gives pages back to a guest in need, `reporting` tells the host of
    free ones as they become free."""

    __slots__ = ("deflate_on_oom", "reporting")

    def __init__(self, *, deflate_on_oom: bool = True, reporting: bool = True) -> None:
        self.deflate_on_oom = deflate_on_oom
        self.reporting = reporting


class Rng:
    """A virtio-rng, fed by the host; max_bytes per period (ms) where they are not 0."""

    __slots__ = ("max_bytes", "period")

    def __init__(self, *, max_bytes: int = 0, period: int = 0) -> None:
        self.max_bytes = max_bytes
        self.period = period


class Machine:
    """All that a microVM is made of.

    console: what becomes of the serial port: "" (nothing reads it), a file's path, or "fd:N", a connected
    socket or the end of a pipe that QEMU inherits. accel: "kvm" or "tcg".
    """

    __slots__ = (
        "accel",
        "balloon",
        "cmdline",
        "console",
        "drives",
        "initrd",
        "kernel",
        "memory",
        "nics",
        "ports",
        "rng",
        "shares",
        "vcpus",
        "vsock",
    )

    def __init__(
        self,
        *,
        kernel: str,
        initrd: str = "",
        cmdline: str = "",
        memory: Memory,
        vcpus: int = 1,
        drives: Sequence[Drive] = (),
        nics: Sequence[Nic] = (),
        ports: Sequence[Port] = (),
        shares: Sequence[Share] = (),
        vsock: Vsock | None = None,
        balloon: Balloon | None = None,
        rng: Rng | None = None,
        console: str = "",
        accel: str = "tcg",
    ) -> None:
        self.kernel = kernel
        self.initrd = initrd
        self.cmdline = cmdline
        self.memory = memory
        self.vcpus = vcpus
        self.drives = list(drives)
        self.nics = list(nics)
        self.ports = list(ports)
        self.shares = list(shares)
        self.vsock = vsock
        self.balloon = balloon
        self.rng = rng
        self.console = console
        self.accel = accel

    def copy(self) -> Machine:
        """Another one with the same parts, to be changed."""
        return Machine(**{name: getattr(self, name) for name in self.__slots__})


def check(machine: Machine) -> None:
    """Raises InvalidArgument, with the field as subject, for what no machine of ours can be."""
    devices = len(machine.drives) + len(machine.nics) + len(machine.shares) + bool(machine.ports)
    devices += sum(part is not None for part in (machine.vsock, machine.balloon, machine.rng))
    if devices > MAX_DEVICES:
        raise InvalidArgument(f"{devices} devices: a microVM has room for {MAX_DEVICES}", subject="drives")
    if not 1 <= machine.vcpus <= MAX_VCPUS:
        raise InvalidArgument(f"vcpus must be 1 to {MAX_VCPUS}, not {machine.vcpus}", subject="vcpus")
    if machine.memory.mib < MIN_MEMORY:
        raise InvalidArgument(
            f"{machine.memory.mib} MiB are too little: a microVM needs {MIN_MEMORY}", subject="memory"
        )
    if machine.vsock and not machine.memory.shared:
        raise InvalidArgument("a vsock device needs shared memory", subject="vsock")
    ids = [drive.id for drive in machine.drives] + [nic.id for nic in machine.nics]
    ids += [port.name for port in machine.ports] + [share.tag for share in machine.shares]
    for name in ids:
        if not name or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise InvalidArgument(f"{name!r}: a device's name has letters, digits, - and _", subject="id")
        if ids.count(name) > 1:
            raise InvalidArgument(f"two devices are named {name!r}", subject="id")


def _escaped(text: str) -> str:
    """A value in a list of options: a comma is doubled (QEMU's util/keyval.c)."""
    return text.replace(",", ",,")


def _on(value: bool) -> str:
    return "on" if value else "off"


def _drive(drive: Drive, path: str) -> list[str]:
    # the node's name, by which another file can be put behind it (blockdev-reopen)
    words = f"id={drive.id},node-name=disk-{drive.id},if=none,format=raw,file.locking=off"
    words += f",readonly={_on(drive.read_only)}"
    words += f",cache={drive.cache},discard=unmap,file={_escaped(path)}"
    words += "".join(f",throttling.{name}={value}" for name, value in sorted(drive.throttle.items()))
    return ["-drive", words, "-device", f"virtio-blk-device,drive={drive.id},id=dev-{drive.id}"]


def _nic(nic: Nic) -> list[str]:
    device = f"virtio-net-device,id=dev-{nic.id}"
    device += f",mac={nic.mac}" if nic.mac else ""
    device += f",host_mtu={nic.mtu}" if nic.mtu else ""
    if nic.fd >= 0:
        back = f"tap,id={nic.id},fd={nic.fd}"
    elif nic.tap:
        back = f"tap,id={nic.id},ifname={_escaped(nic.tap)},script=no,downscript=no"
    else:  # a hub with one port: a machine that will be a tap's must not have learnt another's abilities
        back = f"hubport,id={nic.id},hubid={ord(nic.id[-1])}"
    return ["-netdev", back, "-device", f"{device},netdev={nic.id}"]


def _ports(ports: Sequence[Port]) -> list[str]:
    words = ["-device", "virtio-serial-device,id=serial"] if ports else []
    for port in ports:
        back = f"fd={port.fd}" if port.fd >= 0 else f"path={_escaped(port.path)},server=on,wait=off"
        words += ["-chardev", f"socket,id={port.name},{back}"]
        words += ["-device", f"virtserialport,bus=serial.0,chardev={port.name},name={port.name}"]
    return words


def _memory(memory: Memory) -> list[str]:
    if not memory.path and not memory.shared:
        return ["-m", f"{memory.mib}M"]
    kind = f"file,mem-path={_escaped(memory.path)}" if memory.path else "memfd"
    ram = f"memory-backend-{kind},id=ram,size={memory.mib}M,share={_on(memory.shared)}"
    return ["-m", f"{memory.mib}M", "-object", ram]


def _console(console: str, files: Mapping[str, Sequence[int]]) -> list[str]:
    if not console:
        return ["-serial", "null"]
    if console.startswith("fd:"):
        return ["-chardev", f"socket,id=console,fd={console[3:]}", "-serial", "chardev:console"]
    words, path = _passed(console, files)
    return [*words, "-chardev", f"file,id=console,path={_escaped(path)}", "-serial", "chardev:console"]


def _passed(path: str, files: Mapping[str, Sequence[int]]) -> tuple[list[str], str]:
    """A file that QEMU inherits open is found in a set of descriptors, the one with the right mode being
    taken (qemu(1), -add-fd)."""
    if path not in files:
        return [], path
    number = files[path][0]
    words = [word for fd in files[path] for word in ("-add-fd", f"fd={fd},set={number}")]
    return words, f"/dev/fdset/{number}"


def argv(
    machine: Machine,
    *,
    qemu: str = "qemu-system-x86_64",
    qmp_fd: int = -1,
    qmp_path: str = "",
    files: Mapping[str, Sequence[int]] | None = None,
    incoming: bool = False,
    sandbox: bool = True,
) -> list[str]:
    """QEMU's command line for this machine.

    qmp_fd: a connected socket for the monitor, which QEMU inherits; else it listens on `qmp_path`.
    files: {path: descriptors} of drives and of the console's file that QEMU inherits open and need not find;
    of one that it writes to it wants one to read, too.
    incoming: wait for a saved state (`migrate-incoming`). sandbox: with QEMU's own seccomp filter. Raises
    InvalidArgument.
    """
    check(machine)
    options = ["microvm", "acpi=on", "rtc=on", "pit=off", "pic=off", f"accel={machine.accel}"]
    if machine.accel == "tcg":
        options[3:5] = []  # the guest's clock has no other reference there
    if machine.memory.path or machine.memory.shared:
        options.append("memory-backend=ram")
    words = [qemu, "-machine", ",".join(options), "-cpu", "host" if machine.accel == "kvm" else "max"]
    words += ["-smp", str(machine.vcpus), *_memory(machine.memory)]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    if sandbox:
        words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    back = f"fd={qmp_fd}" if qmp_fd >= 0 else f"path={_escaped(qmp_path)},server=on,wait=off"
    words += ["-chardev", f"socket,id=qmp,{back}", "-mon", "chardev=qmp,mode=control"]
    words += ["-kernel", machine.kernel]
    words += ["-initrd", machine.initrd] if machine.initrd else []
    words += ["-append", machine.cmdline] if machine.cmdline else []
    words += _console(machine.console, files or {})
    for drive in machine.drives:
        passed, path = _passed(drive.path, files or {})
        words += [*passed, *_drive(drive, path)]
    for nic in machine.nics:
        words += _nic(nic)
    words += _ports(machine.ports)
    for share in machine.shares:
        local = f"local,id={share.tag},path={_escaped(share.path)},security_model=passthrough,multidevs=remap"
        words += ["-fsdev", local + (",readonly=on" if share.read_only else "")]
        words += ["-device", f"virtio-9p-device,fsdev={share.tag},mount_tag={share.tag}"]
    if machine.vsock:
        words += ["-chardev", f"socket,id=vsock,path={_escaped(machine.vsock.path)}"]
        words += ["-device", "vhost-user-vsock-device,chardev=vsock,id=dev-vsock"]
    if machine.balloon:
        options = ["virtio-balloon-device", "id=balloon"]
        options.append(f"deflate-on-oom={_on(machine.balloon.deflate_on_oom)}")
        options.append(f"free-page-reporting={_on(machine.balloon.reporting)}")
        words += ["-device", ",".join(options)]
    if machine.rng:
        limit = (
            f",max-bytes={machine.rng.max_bytes},period={machine.rng.period}" if machine.rng.period else ""
        )
        words += ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-device,rng=rng{limit}"]
    return [*words, "-incoming", "defer"] if incoming else words
