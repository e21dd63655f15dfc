"""A containerd of a test's own, and ctr to talk to it."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import signal
import subprocess
import tarfile
import tempfile
import uuid
from pathlib import Path

from bundles import image_tar, remove_cgroups, wait_until

NAMESPACE = "nagt"


def write_image(path: Path) -> None:
    """An OCI layout with one image, as a tar, for `ctr images import`."""
    layout = path.parent / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    layer = image_tar()
    config = {
        "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [put(layer, "layer.v1.tar")],
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": "nagt.test/box:1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    with tarfile.open(path, "w") as tar:
        tar.add(layout, ".")


class Containerd:
    """A containerd of a test's own."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self.tag = f"nagt-{uuid.uuid4().hex[:8]}"
        self.base = Path(tempfile.mkdtemp(prefix=f"{self.tag}-", dir="/tmp"))
        self.address = str(self.base / "s")
        config = self.base / "config.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        with (self.base / "log").open("wb") as log:
            self.daemon = subprocess.Popen(
                [
                    "containerd",
                    *("--config", str(config), "--root", str(self.base / "root")),
                    *("--state", str(self.base / "state"), "--address", self.address),
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self.ctr("version").returncode == 0, 60, "containerd")
        write_image(self.base / "image.tar")
        self.ok("images", "import", "--snapshotter", "native", str(self.base / "image.tar"))

    def argv(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", self.address, "-n", NAMESPACE, *arguments]

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with (self.base / "out").open("w+") as out, (self.base / "err").open("w+") as err:
            done = subprocess.run(
                self.argv(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=120,
            )
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, done.returncode, out.read(), err.read())

    def ok(self, *arguments: str) -> str:
        done = self.ctr(*arguments)
        assert done.returncode == 0, (arguments, done, (self.base / "log").read_text()[-2000:])
        return done.stdout

    def words(self, identifier: str, *command: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
        return (
            *("run", "--runc-binary", self.runtime, "--snapshotter", "native", *options),
            *("--cgroup", f"/{self.tag}/{identifier}", "nagt.test/box:1", identifier, *command),
        )

    def run(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return self.ctr(*self.words(*arguments, options=options))

    def remove(self, name: str) -> None:
        """Kill a running container, and all of it."""
        self.ok("tasks", "kill", "--signal", "SIGKILL", name)
        wait_until(lambda: "STOPPED" in self.ok("tasks", "ls"))
        self.ok("tasks", "rm", name)
        self.ok("containers", "rm", name)

    def close(self) -> list[str]:
        for name in self.ctr("tasks", "ls", "-q").stdout.split():
            self.ctr("tasks", "rm", "--force", name)
        for name in self.ctr("containers", "ls", "-q").stdout.split():
            self.ctr("containers", "rm", name)
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(30)
        left = [
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(self.base) in line
        ]
        left += remove_cgroups(self.tag)
        if not left:
            shutil.rmtree(self.base)
        return left
