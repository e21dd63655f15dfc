"""Bundles and containers of low-level runtimes for black-box tests, and what they may leave behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[2] / "src"
BUSYBOX = "/bin/busybox"
# an emulated machine, on a host that has other work, is that much slower, and never wrong for it
PATIENCE = 10.0 if "NAGAYA_TEST_VM" in os.environ else 1.0
_APPLETS = (
    "sh true false sleep cat ls id env pwd tty stat mount hostname grep sed touch mkdir ln readlink rm ps"
    " kill echo dd stty sync test head wc nproc mknod"
).split()


def nagaya_oci(directory: Path, name: str = "nagaya-oci") -> str:
    """The real launcher of that name in an environment below `directory` that has this source tree
    installed."""
    packages = directory / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "nagaya").symlink_to(SOURCE / "nagaya")
    (directory / "bin").mkdir()
    (directory / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    return str(shutil.copy(SOURCE.parent / "scripts" / name, directory / "bin" / name))


def forget(launcher: str) -> None:
    """Remove the read-only bind that the runtime made of the interpreter beside the launcher."""
    base = Path(launcher).parents[1]
    bound = Path(f"/run/nagaya/exe{base}/bin/python3")
    if any(line.split()[4] == str(bound) for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        subprocess.run(["umount", "--lazy", str(bound)], check=True)
    if bound.parents[1].is_dir():
        shutil.rmtree(bound.parents[1])
        with suppress(OSError):
            os.removedirs(bound.parents[2])


def make_rootfs(path: Path) -> Path:
    """A small root file system: busybox, its applets as links, /etc/passwd."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (path / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin" / "busybox")
    for applet in _APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nfive:x:5:5::/five:/bin/sh\n")
    (path / "tmp").chmod(0o1777)
    return path


def image_tar() -> bytes:
    """A root file system as an image layer: busybox and some of its applets."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(BUSYBOX, "bin/busybox")
        for applet in ("sh", "echo", "sleep", "cat", "id", "true", "hostname", "ls"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return raw.getvalue()


def base_spec() -> dict[str, Any]:
    """A config.json with everything ordinary in it: runc's example, without a terminal, writable."""
    from nagaya.oci.runtime import example

    spec = example()
    spec["ociVersion"] = "1.0.2"
    spec["process"]["terminal"] = False
    spec["process"]["args"] = ["true"]
    spec["root"]["readonly"] = False
    return spec


def wait_until(condition: Callable[[], object], timeout: float = 20.0, what: str = "condition") -> None:
    """Poll until the condition is true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.01)


def cgroups_named(tag: str) -> list[str]:
    """Cgroup directories whose name has the tag, in all hierarchies."""
    return [
        os.path.join(top, name)
        for top, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if tag in name
    ]


def remove_cgroups(tag: str) -> list[str]:
    """Remove cgroups whose name has the tag, as soon as what ended in them has left; those below them
    that were there, as a monitor of an engine or a runtime made them."""

    def gone() -> bool:
        for path in sorted(cgroups_named(tag), reverse=True):
            for top, names, _ in os.walk(path, topdown=False):
                found.update(os.path.join(top, name) for name in names)
            try:
                for inner in sorted(found, reverse=True):
                    if inner.startswith(path + "/") and os.path.isdir(inner):
                        os.rmdir(inner)
                os.rmdir(path)
            except OSError:
                continue
        return not cgroups_named(tag)

    found: set[str] = set()
    wait_until(gone, 30, f"the end of what runs in cgroups named {tag}")
    return sorted(found)


class Bundle:
    """One bundle and one container name, run by one runtime with a state directory of its own."""

    def __init__(self, runtime: str, base: Path, tag: str) -> None:
        self.runtime, self.base, self.tag = runtime, base, tag
        self.path, self.state_root = base / "bundle", base / "state"
        self.rootfs = make_rootfs(self.path / "rootfs")
        self.spec = base_spec()
        self.id = f"{tag}-1"

    @property
    def is_ours(self) -> bool:
        return os.path.basename(self.runtime) == "nagaya-oci"

    def save(self) -> None:
        (self.path / "config.json").write_text(json.dumps(self.spec))

    def argv(self, *arguments: str) -> list[str]:
        return [self.runtime, "--root", str(self.state_root), *arguments]

    def call(self, *arguments: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one command of the runtime. Its output goes to files: a detached container would keep a
        pipe open for as long as it lives."""
        out, err = self.base / "stdout", self.base / "stderr"
        options.setdefault("stdin", subprocess.DEVNULL)
        with out.open("w") as o, err.open("w") as e:
            done = subprocess.run(
                self.argv(*arguments), stdout=o, stderr=e, timeout=timeout * PATIENCE, **options
            )
        return subprocess.CompletedProcess(done.args, done.returncode, out.read_text(), err.read_text())

    def ok(self, *arguments: str, **options: Any) -> str:
        """As `call`; the command must succeed. Its stdout."""
        done = self.call(*arguments, **options)
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def run(
        self, *args: str, options: tuple[str, ...] = (), **keywords: Any
    ) -> subprocess.CompletedProcess[str]:
        """`run` the bundle in the foreground, with these arguments of the process when given."""
        if args:
            self.spec["process"]["args"] = list(args)
        self.save()
        return self.call("run", "--bundle", str(self.path), *options, self.id, **keywords)

    def shell(self, script: str) -> str:
        """What a shell script in a fresh container prints; it must succeed."""
        done = self.run("sh", "-c", script)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    def start(self, *args: str, options: tuple[str, ...] = ()) -> None:
        """create + start, detached."""
        self.spec["process"]["args"] = list(args or ("sleep", "1000"))
        self.save()
        self.ok("create", "--bundle", str(self.path), *options, self.id)
        self.ok("start", self.id)

    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.ok("state", self.id))
        return document

    def status(self) -> str:
        return str(self.state()["status"])

    def leaks(self) -> list[str]:
        """What is left of the container on the host: state, mounts, cgroups, processes."""
        found = [f"state {p}" for p in self.state_root.glob("*") if p.is_dir()]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [f"mount {line.split()[4]}" for line in mounts if str(self.base) in line]
        found += [f"cgroup {path}" for path in cgroups_named(self.tag)]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                if self.id.encode() in command.split(b"\0") and str(self.base).encode() in command:
                    found.append(f"process {process.name} {command!r}")
            except OSError:
                continue
        return found

    def close(self) -> list[str]:
        """Delete the container, whatever its state; what is left then."""
        for path in list(self.state_root.glob("*")):
            if path.is_dir():
                self.call("delete", "--force", path.name)
        leaks = self.leaks()
        if not any(line.startswith("mount ") for line in leaks):
            shutil.rmtree(self.base)
        return leaks


@contextmanager
def bundle(runtime: str, base: Path, tag: str) -> Iterator[Bundle]:
    """A bundle that is deleted at the end, and must leave nothing."""
    made = Bundle(runtime, base, tag)
    try:
        yield made
    except BaseException:
        made.close()
        raise
    assert made.close() == []
