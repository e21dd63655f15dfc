"""Archives of images for tests: docker's and OCI's, honest and not."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nagaya.image.store import ImageStore
from nagaya.oci import platform

Member = tuple[str, bytes] | tarfile.TarInfo


def parcel(*members: Member) -> bytes:
    """A tar of files and of members without data."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in members:
            info, data = (tarfile.TarInfo(entry[0]), entry[1]) if isinstance(entry, tuple) else (entry, b"")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config(*layers: bytes, **more: Any) -> bytes:
    """The configuration of an image of these plain archives."""
    host = platform.host()
    document = {
        "architecture": host.architecture,
        "os": host.os,
        "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha(data)}" for data in layers]},
        **more,
    }
    return json.dumps(document).encode()


def docker_archive(
    *layers: bytes,
    tags: Sequence[str] = ("a/b:1",),
    packed: Callable[[bytes], bytes] = lambda data: data,
    document: bytes = b"",
) -> dict[str, bytes]:
    """The members of a `docker save` before 25, by name."""
    about = document or config(*layers)
    item = {
        "Config": f"{sha(about)}.json",
        "RepoTags": list(tags),
        "Layers": [f"{number}/layer.tar" for number in range(len(layers))],
    }
    return {
        f"{sha(about)}.json": about,
        **{f"{number}/layer.tar": packed(data) for number, data in enumerate(layers)},
        "manifest.json": json.dumps([item]).encode(),
    }


def layout(*layers: bytes, name: str = "docker.io/a/b:1", about: bytes = b"") -> dict[str, bytes]:
    """The members of an OCI layout with one image of these plain layers, by name."""
    about = about or config(*layers)

    def describe(data: bytes, kind: str) -> dict[str, Any]:
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{sha(data)}",
            "size": len(data),
        }

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe(about, "config.v1+json"),
            "layers": [describe(data, "layer.v1.tar") for data in layers],
        }
    ).encode()
    entry = describe(manifest, "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": name}
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        **{f"blobs/sha256/{sha(data)}": data for data in (manifest, about, *layers)},
    }


def packed(members: Mapping[str, bytes]) -> bytes:
    """Members as a tar."""
    return parcel(*members.items())


def pieces(data: bytes | Path, size: int = 1 << 16) -> Iterator[bytes]:
    """An archive as it comes over a connection."""
    raw = data.read_bytes() if isinstance(data, Path) else data
    for at in range(0, len(raw), size):
        yield raw[at : at + size]


def left(root: Path) -> list[str]:
    """Every file of the store's, and every layer."""
    found = [str(p.relative_to(root)) for p in (root / "content").rglob("*") if p.is_file()]
    found += [str(p.relative_to(root)) for p in (root / "content/ingest").iterdir()]
    return found + [f"layer {p.name}" for p in (root / "snapshots/l").iterdir() if p.name != "empty"]


def saved(store: ImageStore, *names: str) -> bytes:
    """What `save` writes."""
    return b"".join(store.save(names))
