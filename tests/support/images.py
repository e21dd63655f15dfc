"""Real images for tests: an OCI layout written by hand, and Debian's docker-registry to push it to."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from house import wait_for

BUSYBOX = Path("/bin/busybox")


def layer(entries: Sequence[tuple[str, bytes | str | None]]) -> bytes:
    """A gzipped layer of (name, content): bytes a file (0755), str a symbolic link, None a directory."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), compresslevel=1, mtime=0)


def write_layout(
    directory: Path, layers: Sequence[bytes], config: dict[str, object], tag: str = "latest"
) -> None:
    """Write an OCI image layout with one image of these gzipped layers."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    described = [put(data, "application/vnd.oci.image.layer.v1.tar+gzip") for data in layers]
    document = {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(gzip.decompress(data)).hexdigest() for data in layers],
        },
        "history": [{"created_by": f"layer {i}"} for i in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": described,
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def busybox_layers() -> list[bytes]:
    """Three layers: busybox with two applets, a tree, and one that replaces and whites out parts of it."""
    programs = [("bin/sh", "busybox"), ("bin/cat", "busybox"), ("bin/ls", "busybox")]
    return [
        layer([("bin", None), ("bin/busybox", BUSYBOX.read_bytes()), *programs, ("tmp", None)]),
        layer(
            [
                *(
                    ("data", None),
                    ("data/kept", b"kept\n"),
                    ("data/gone", b"gone\n"),
                    ("data/changed", b"old\n"),
                ),
                *(("opaque", None), ("opaque/lower", b"lower\n")),
            ]
        ),
        layer(
            [
                *(("data/.wh.gone", b""), ("data/changed", b"new\n")),
                *(("opaque/.wh..wh..opq", b""), ("opaque/upper", b"upper\n")),
            ]
        ),
    ]


class Registry:
    """Debian's docker-registry on address:port, in the network namespace that `prefix` enters.

    auth: its `auth` section, as JSON; certificate: a PEM file with key and certificate, for TLS.
    """

    def __init__(
        self,
        directory: Path,
        prefix: Sequence[str] = (),
        port: int = 5000,
        host: str = "127.0.0.1",
        auth: dict[str, object] | None = None,
        certificate: Path | None = None,
    ) -> None:
        self.address = f"{host}:{port}"
        self._prefix = list(prefix)
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.yml"
        tls = {"certificate": str(certificate), "key": str(certificate)} if certificate else None
        document = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"delete": {"enabled": True}, "filesystem": {"rootdirectory": f"{directory}/data"}},
            "http": {"addr": self.address, **({"tls": tls} if tls else {})},
            **({"auth": auth} if auth else {}),
        }
        config.write_text(json.dumps(document))  # JSON is YAML
        self.process = subprocess.Popen(
            [*prefix, "docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ask = ["curl", "-sk", f"{'https' if tls else 'http'}://{self.address}/v2/"]
        wait_for(
            lambda: subprocess.run([*prefix, *ask], capture_output=True).returncode == 0, 30, "the registry"
        )

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def push(self, source: str, name: str, *options: str) -> str:
        """skopeo copy SOURCE to NAME here; returns the whole reference."""
        target = f"{self.address}/{name}"
        subprocess.run(
            [*self._prefix, "skopeo", "copy", "--insecure-policy", "-q", "--dest-tls-verify=false", *options,
             source, f"docker://{target}"],
            check=True,
            capture_output=True,
        )  # fmt: skip
        return target

    def push_busybox(self, scratch: Path, name: str, *options: str) -> str:
        """Push an image of busybox to NAME here; the whole reference."""
        write_layout(scratch / "layout", busybox_layers(), {"Cmd": ["sh"], "Env": ["PATH=/bin"]})
        return self.push(f"oci:{scratch}/layout:latest", name, *options)
