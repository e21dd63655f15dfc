"""What microVMs boot, made from the distribution's packages: kernel, modules, agent.

    python3 -m nagaya.vm.making DIRECTORY CACHE

`./dev vm` runs it. Of each kind of kernel in `assets.KINDS` the directory gets KIND/vmlinux and
KIND/initramfs. The packages are downloaded and unpacked, never installed: nothing of the host's own start
changes.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

from nagaya.errors import FailedPrecondition, NagayaError, NotFound
from nagaya.vm import assets, initramfs, kernel

_SOURCE = os.path.join(os.path.dirname(__file__), "agent", "agent.c")
_FLAGS = ("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-s")
_PACKAGES = {"cloud": "linux-image-cloud-amd64", "full": "linux-image-amd64"}
_INSTALLED = {"cloud": r"-cloud-amd64$", "full": r"(?<!-cloud)-amd64$|-generic$"}


class Modules(Mapping[str, bytes]):
    """{name of a kernel module: its content} below a directory like /lib/modules/VERSION; read when asked."""

    def __init__(self, directory: str) -> None:
        files = glob.iglob(f"{directory}/kernel/**/*.ko*", recursive=True)
        self._files = {os.path.basename(f).partition(".")[0].replace("-", "_"): f for f in files}
        self._known: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._known:
            with open(self._files[name], "rb") as file:
                self._known[name] = kernel.unpack_module(self._files[name], file.read())
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _run(*words: str, cwd: str | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise FailedPrecondition(last, step=f"{words[0]} {words[1]}")
    return done.stdout


def compile_agent() -> bytes:
    """The agent, static: with musl where musl-gcc is, else with the C library's static half.

    Raises NotFound without a compiler, FailedPrecondition when it refuses.
    """
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if not compiler:
        raise NotFound("no C compiler: install musl-tools", subject="musl-gcc")
    with tempfile.TemporaryDirectory(prefix="nagaya-agent-") as directory:
        made = f"{directory}/agent"
        _run(compiler, *_FLAGS, "-o", made, _SOURCE)
        with open(made, "rb") as file:
            return file.read()


def _stripped(module: bytes) -> bytes:
    """Without what only a debugger reads: half of the size. Its signature goes, too, which Debian's kernels
    do not insist on."""
    if not shutil.which("strip"):
        return module
    with tempfile.TemporaryDirectory(prefix="nagaya-module-") as directory:
        path = f"{directory}/module.ko"
        with open(path, "wb") as file:
            file.write(module)
        _run("strip", "--strip-debug", path)
        with open(path, "rb") as file:
            return file.read()


def find_kernel(kind: str, cache: str) -> tuple[str, str]:
    """(kernel, directory of its modules): installed, unpacked below `cache` earlier, or downloaded now.

    Raises NotFound, FailedPrecondition.
    """
    for root in ("", f"{cache}/{kind}"):
        found = [f for f in sorted(glob.glob(f"{root}/boot/vmlinuz-*")) if re.search(_INSTALLED[kind], f)]
        for image in reversed(found):
            version = os.path.basename(image).removeprefix("vmlinuz-")
            for library in (f"{root}/lib/modules", f"{root}/usr/lib/modules"):
                if os.path.isdir(f"{library}/{version}"):
                    return image, f"{library}/{version}"
    if not shutil.which("apt-get"):
        raise NotFound("neither a kernel in /boot nor apt to get one with", subject=_PACKAGES[kind])
    listed = _run("apt-cache", "depends", _PACKAGES[kind])
    if not (names := re.findall(r"Depends: (linux-image-\d\S*)", listed)):
        raise NotFound(f"apt knows no package {_PACKAGES[kind]}", subject=_PACKAGES[kind])
    into = f"{cache}/{kind}"
    os.makedirs(into, exist_ok=True)
    _run("apt-get", "-q", "download", names[0], cwd=into)
    for package in glob.glob(f"{into}/*.deb"):
        _run("dpkg-deb", "--extract", package, into)
        os.unlink(package)
    return find_kernel(kind, cache)


def _put(path: str, data: bytes) -> None:
    """A running machine may have the old one open: it keeps it."""
    with open(f"{path}.new", "wb") as file:
        file.write(data)
    os.rename(f"{path}.new", path)


def make(directory: str, cache: str) -> None:
    """Fill the directory of `assets.find`; packages are kept below `cache`. Done again, it takes what
    changed: the agent, a newer kernel.

    Raises NotFound, FailedPrecondition, DataLoss (a broken kernel), OSError.
    """
    agent = compile_agent()
    for kind in assets.KINDS:
        image, library = find_kernel(kind, cache)
        os.makedirs(f"{directory}/{kind}", exist_ok=True)
        with open(image, "rb") as file:
            _put(f"{directory}/{kind}/vmlinux", kernel.vmlinux(file.read()))
        modules = Modules(library)
        order = kernel.in_order(initramfs.AGENT_MODULES, modules)
        archive = initramfs.agent_archive(agent, [(name, _stripped(modules[name])) for name in order])
        _put(f"{directory}/{kind}/initramfs", archive)


if __name__ == "__main__":
    try:
        make(sys.argv[1], sys.argv[2])
    except (NagayaError, OSError) as error:
        raise SystemExit(str(error)) from None
