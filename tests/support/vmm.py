"""A real nagaya-vmm for tests: its process, its API, and a guest whose shell is on the serial console."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nagaya.errors import NotFound
from nagaya.vm import assets
from nagaya.vm.initramfs import Archive

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = Path(sys.executable).parent / "nagaya-vmm"
BOOT_ARGS = "console=ttyS0 quiet reboot=k panic=-1 rdinit=/test-init cryptomgr.notests mitigations=off"
# emulated, on a machine with much else to do
PATIENCE = 120
_INIT = b"""#!/bin/busybox sh
# with test=root on the command line: start the root device's /bin/init, and reset
/bin/busybox --install -s /bin
export PATH=/bin PS1=
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod $module; done
ip link set lo up
if grep -q test=root /proc/cmdline; then
    cat /proc/cmdline; mkdir /new; mount -t erofs -o ro /dev/vda /new && chroot /new /bin/init
    reboot -f
fi
stty -F /dev/ttyS0 -echo
echo READY
exec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'
"""


def missing() -> str:
    """What is not there for such tests, "" when all is."""
    if os.geteuid():
        return "needs root"
    if not shutil.which("musl-gcc") and not shutil.which("gcc"):
        return "needs a C compiler"
    try:
        assets.find()
        assets.find_qemu()
    except NotFound as error:
        return str(error)
    return ""


def make_initrd(directory: Path) -> Path:
    """The microVMs' own initramfs with a shell beside the agent, and a helper for vsock."""
    helper = directory / "vs"
    compiler = "musl-gcc" if shutil.which("musl-gcc") else "gcc"
    source = Path(__file__).with_name("vsock_helper.c")
    headers = directory / "include"  # musl has none of the kernel's
    headers.mkdir()
    for name in ("linux", "asm-generic"):
        (headers / name).symlink_to(f"/usr/include/{name}")
    (headers / "asm").symlink_to("/usr/include/x86_64-linux-gnu/asm")
    words = [compiler, "-Os", "-static", "-s", "-w", f"-I{headers}", "-o", str(helper), str(source)]
    subprocess.run(words, check=True)
    archive = Archive()
    archive.put("/bin/busybox", 0o100755, Path("/bin/busybox").read_bytes())
    archive.put("/bin/vs", 0o100755, helper.read_bytes())
    archive.put("/test-init", 0o100755, _INIT)
    made = directory / "initrd"
    made.write_bytes(Path(assets.find().initrd).read_bytes() + archive.to_bytes())
    return made


class Client:
    """Who asks a machine's API at the socket `path`."""

    path: str
    patience = 20.0  # seconds for an answer

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(self.patience)
        client.connect(self.path)
        return client

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any, Any]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect()
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None, answer.headers
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, body, _ = self.request("GET", path)
        assert status == 200, body
        return body


class Vmm(Client):
    """One process. Used as a context manager, it is ended, and must have left nothing behind."""

    patience = PATIENCE

    def __init__(
        self, directory: Path, *arguments: str, argv: Sequence[str] = (), api: str = "", log: str = ""
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.path = api or str(directory / "api.sock")
        words = list(argv) or [str(LAUNCHER), "--api-sock", self.path, "--id", "test-vm"]
        self._output = b""
        self.process = subprocess.Popen(
            [*words, "--log-path", log or str(directory / "log"), *arguments],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(directory / "stderr").open("wb"),
        )
        self.directory = directory

    def __enter__(self) -> Vmm:
        until = time.monotonic() + PATIENCE
        while not self._listens():
            assert self.process.poll() is None, self.stderr()
            assert time.monotonic() < until, "no API socket"
            time.sleep(0.01)
        return self

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.path) == 0

    def __exit__(self, *_: object) -> None:
        children = self.children()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        assert not os.path.exists(self.path)
        assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]

    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    def children(self) -> list[int]:
        """QEMU, if it runs."""
        try:
            return [
                int(p)
                for p in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
                .read_text()
                .split()
            ]
        except FileNotFoundError:
            return []

    def put(self, path: str, **body: Any) -> None:
        status, answer, _ = self.request("PUT", path, body)
        assert status == 204, answer

    def patch(self, path: str, **body: Any) -> None:
        status, answer, _ = self.request("PATCH", path, body)
        assert status == 204, answer

    def refused(self, method: str, path: str, body: Any = None) -> str:
        status, answer, _ = self.request(method, path, body)
        assert status == 400, answer
        return str(answer["fault_message"])

    def boot(self, initrd: Path | str, *, kernel: str = "", **machine: Any) -> None:
        """Start it, and wait for the shell. Other devices are configured before."""
        self.put("/machine-config", **{"vcpu_count": 1, "mem_size_mib": 128, **machine})
        self.put(
            "/boot-source",
            kernel_image_path=kernel or assets.find().kernel,
            initrd_path=str(initrd),
            boot_args=BOOT_ARGS,
        )
        self.put("/actions", action_type="InstanceStart")
        self.read_until(rb"READY\r?\n")
        self.shell("true")  # and what the shell says of itself

    def read_until(self, pattern: bytes, patience: float = PATIENCE) -> bytes:
        """What the guest printed up to that."""
        stdout = self.process.stdout
        assert stdout is not None
        until = time.monotonic() + patience
        while not (found := re.search(pattern, self._output)):
            ready = select.select([stdout], [], [], max(0, until - time.monotonic()))[0]
            data = os.read(stdout.fileno(), 65536) if ready else b""
            assert data, f"not {pattern!r} but {self._output[-2000:]!r}, {self.stderr()}"
            self._output += data
        said, self._output = self._output[: found.start()], self._output[found.end() :]
        return said

    def type(self, text: str) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(text.encode())
        stdin.flush()

    def shell(self, command: str) -> str:
        """What a command in the guest prints."""
        self.type(f'{{ {command}; }} 2>&1; echo "=$?="\n')
        return self.read_until(rb"=(\d+)=\r?\n").decode().replace("\r", "").strip()

    def wait(self) -> int:
        """The exit code of a process whose guest ends."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.read_until(rb"\Z.", patience=1)  # fails, and shows what the guest said last
            raise


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    """A program that must succeed."""
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """nagaya-vmm with these arguments, until it ends."""
    words = [str(LAUNCHER), *arguments]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
