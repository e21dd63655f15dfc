"""Run tests on cgroup v2: boot Debian's cloud kernel in QEMU, run pytest in it, exit with its code.

    tests/vm/boot.py [--kernel FILE] [--systemd | --selinux] [--ours] [--quiet SECONDS] [PYTEST ARGUMENT ...]

The processor is emulated: a machine whose /dev/kvm opens need not be able to run a guest with it. How
long that takes says nothing: what has said nothing for long hangs.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import initramfs

from nagaya.errors import NotFound
from nagaya.vm import making

_CACHE = initramfs.ROOT / "build" / "vm"
_MEMORY, _CPUS = "1536M", 2
_DISK, _SWAP = 64 << 20, 128 << 20
# tests/runtime is there, too, for who names its files
_TESTS, _SYSTEMD_TESTS, _SELINUX_TESTS = "tests/vm", "tests/vm/test_systemd.py", "tests/vm/test_selinux.py"
_PYTEST = ("python3", "-B", "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no")
_OURS = ("-k", "not runc and not crun")
_EXIT = re.compile(r"^test-vm: exit (\d+)\s*$")


def kernel() -> Path:
    """A cloud kernel of Debian: an installed one, or the package's, unpacked below build/vm and kept.

    Raises NotFound, FailedPrecondition.
    """
    return Path(making.find_kernel("cloud", str(_CACHE))[0])


def _sparse(path: Path, size: int) -> str:
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def argv(kernel: Path, initrd: Path, disks: list[str], more: str = "") -> list[str]:
    """QEMU's command line: q35 boots a stock kernel as it is, and NVMe is the disk that Debian's cloud
    kernel has built in."""
    line = "console=ttyS0 loglevel=3 panic=-1 cryptomgr.notests mitigations=off random.trust_cpu=on"
    # a busy host may not run the machine for seconds: its timer is there, its disk answers
    line += " no_timer_check nowatchdog nvme_core.io_timeout=4000 psi=1 rdinit=/init" + more
    # it ends with us, however that comes
    words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    words += ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", _MEMORY]
    words += ["-smp", str(_CPUS), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd), "-append", line]
    for index, disk in enumerate(disks):
        words += ["-drive", f"id=d{index},if=none,format=raw,file={disk}"]
        words += ["-device", f"nvme,drive=d{index},serial=d{index}"]
    return words


def _echo(process: subprocess.Popen[bytes], quiet: int) -> Iterator[str]:
    """Print what comes as it comes, also half a line; yield the whole lines. Raises TimeoutError when
    nothing comes for `quiet` seconds."""
    assert process.stdout is not None
    rest = b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], quiet)
        if not ready:
            raise TimeoutError
        if not (chunk := os.read(process.stdout.fileno(), 65536)):
            return
        chunk = chunk.replace(b"\r", b"")
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")


def run(words: list[str], quiet: int) -> int:
    """Boot, print what the guest says, and return the tests' exit code; 124 when it said nothing for
    `quiet` seconds, 125 when it ended without one."""
    begin, code = time.monotonic(), 125
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            for line in _echo(process, quiet):
                if found := _EXIT.match(line):
                    code = int(found[1])
            process.wait()
        except TimeoutError:
            print(f"test-vm: silent for {quiet} s", flush=True)
            code = 124
        finally:
            process.kill()
    if code == 125:
        print("test-vm: the machine ended without a result", flush=True)
    print(f"test-vm: {time.monotonic() - begin:.0f} s", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog="test-vm", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kernel", type=Path, help="a bzImage with NVMe and cgroups built in")
    parser.add_argument("--quiet", type=int, default=600, metavar="SECONDS", help="the longest silence")
    parser.add_argument(
        "--systemd", action="store_true", help="with this host's systemd, and the tests of its driver"
    )
    parser.add_argument("--selinux", action="store_true", help="with SELinux in the place of AppArmor")
    parser.add_argument("--ours", action="store_true", help="leave out the runs with runc and crun")
    parser.add_argument("--shell", metavar="COMMAND", help="run this in the machine instead of the tests")
    options, arguments = parser.parse_known_args()
    if not any(argument.startswith("tests/") for argument in arguments):
        wanted = {True: _TESTS, options.systemd: _SYSTEMD_TESTS, options.selinux: _SELINUX_TESTS}
        arguments.append(wanted[True])
    command = options.shell or shlex.join([*_PYTEST, *(_OURS if options.ours else ()), *arguments])
    try:
        image = options.kernel or kernel()
    except NotFound as error:
        print(f"test-vm: {error}")
        return 77
    # so that the machine and its files go when we are told to
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="nagaya-vm-") as directory:
        base = Path(directory)
        initrd = base / "initramfs"
        initrd.write_bytes(initramfs.build(command, image, systemd=options.systemd, selinux=options.selinux))
        disks = [_sparse(base / "disk", _DISK), _sparse(base / "swap", _SWAP)]
        more = " security=selinux" if options.selinux else ""
        return run(argv(image, initrd, disks, more), options.quiet)


if __name__ == "__main__":
    sys.exit(main())
