"""`nagaya/busybox`: an image made from the host's static busybox (package busybox-static).

It is a real image, with a layer blob, a configuration and a manifest, so that everything behind it
is the same code as for a pulled one. The same busybox gives the same bytes and so the same digests:
that is why the layer is not compressed (zlib's output differs from version to version).
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import tarfile

import msgspec

from nagaya.errors import FailedPrecondition, NotFound
from nagaya.oci import manifest as manifests
from nagaya.oci import platform as platforms

NAME = "docker.io/nagaya/busybox"  # canonical, without tag
_CANDIDATES = (
    "/bin/busybox",
    "/usr/bin/busybox",
    "/bin/busybox.static",
    "/usr/lib/initramfs-tools/bin/busybox",
)
_MAX_SIZE = 64 << 20
_HINT = "install the package busybox-static"
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}

_DIRECTORIES = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n",
    # what a container's own files are mounted on: made here once, not in each container's layer
    "etc/hosts": "",
    "etc/hostname": "",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_LINKS = {"etc/mtab": "/proc/mounts", "var/run": "../run"}


class Built(msgspec.Struct, frozen=True):
    """The blobs of an image."""

    layer: bytes
    config: bytes
    manifest: bytes


def stamp() -> tuple[str, int, int]:
    """(path, size, mtime in ns) of the busybox that would be used: whoever keeps it sees an upgrade
    without reading the file. Raises NotFound."""
    for path in _CANDIDATES:
        try:
            status = os.stat(path)
        except OSError:
            continue
        return path, status.st_size, status.st_mtime_ns
    raise NotFound(
        f"the built-in image needs a static busybox on this host: {_HINT}", subject="nagaya/busybox"
    )


def build() -> Built:
    """Assemble the image. Raises NotFound when there is no busybox, FailedPrecondition when it is
    not static or does not work."""
    path = stamp()[0]
    with open(path, "rb") as file:
        program = file.read(_MAX_SIZE + 1)
    if not _is_static(program):
        raise FailedPrecondition(f"{path} is not a static executable: {_HINT}", subject=path)
    tar = _archive(program, _applets(path))
    platform = platforms.host()
    document: dict[str, object] = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
        "history": [
            {"created": "1970-01-01T00:00:00Z", "created_by": f"nagaya: {path} of this host and its applets"}
        ],
    }
    if platform.variant:
        document["variant"] = platform.variant
    config = msgspec.json.encode(document)
    manifest = manifests.Manifest(
        manifests.OCI_MANIFEST,
        _describe(config, manifests.OCI_CONFIG),
        (_describe(tar, manifests.OCI_LAYER),),
    )
    return Built(tar, config, manifests.encode(manifest))


def _describe(data: bytes, media_type: str) -> manifests.Descriptor:
    return manifests.Descriptor(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), media_type)


def _is_static(program: bytes) -> bool:
    """An ELF file (elf(5)) of 64 bits without an interpreter (PT_INTERP)."""
    if len(program) < 64 or len(program) > _MAX_SIZE or program[:5] != b"\x7fELF\x02":
        return False
    order = "<" if program[5] == 1 else ">"
    (offset,) = struct.unpack_from(order + "Q", program, 32)
    size, count = struct.unpack_from(order + "HH", program, 54)
    if not count or size < 56 or offset + size * count > len(program):
        return False
    kinds = [struct.unpack_from(order + "I", program, offset + size * n)[0] for n in range(count)]
    return 3 not in kinds and 1 in kinds


def _applets(path: str) -> list[str]:
    """Where each applet belongs: "bin/ls", "usr/bin/[" ..."""
    try:
        result = subprocess.run(
            [path, "--list-full"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            env=_ENVIRONMENT,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"{path} does not run: {error}", subject=path) from None
    lines = result.stdout.decode("ascii", "replace").split("\n")
    places = {directory for directory, _ in _DIRECTORIES}
    found = sorted({x for x in lines if x.rpartition("/")[0] in places and x.rpartition("/")[2]})
    if result.returncode != 0 or "bin/sh" not in found:
        raise FailedPrecondition(f"{path} has no applet 'sh': {_HINT}", subject=path)
    return [x for x in found if x != "bin/busybox"]


def _archive(program: bytes, applets: list[str]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(data), link
            tar.addfile(member, io.BytesIO(data))

        for name, mode in _DIRECTORIES:
            add(name, tarfile.DIRTYPE, mode)
        add("bin/busybox", tarfile.REGTYPE, 0o755, program)
        for name in applets:
            # symbolic links: hard links would be counted, and copied up, as one big file
            up = "" if name.startswith("bin/") else "../" * name.count("/") + "bin/"
            add(name, tarfile.SYMTYPE, 0o777, link=up + "busybox")
        for name, text in sorted(_FILES.items()):
            add(name, tarfile.REGTYPE, 0o644, text.encode())
        for name, target in sorted(_LINKS.items()):
            add(name, tarfile.SYMTYPE, 0o777, link=target)
    return raw.getvalue()
