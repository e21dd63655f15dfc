"""A sample image with everything a layer can hold, and trees to compare, as overlayfs shows them."""

from __future__ import annotations

import gzip
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

from fakeregistry import file, member, tar

from nagaya.image.store import ImageStore


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gzipped(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    return gzip.compress(tar(*entries), compresslevel=1, mtime=0)


def sample() -> list[bytes]:
    """Layers with whiteouts, opaque directories, links, modes, owners, times, devices, attributes."""
    folder = tarfile.DIRTYPE
    owned = file("etc/owned", b"x", 0o4711)
    owned[0].uid, owned[0].mtime = 1234, 1_500_000_000
    null = member("etc/null", tarfile.CHRTYPE)
    null.devmajor, null.devminor = 1, 3
    attribute = member("etc/attr")
    attribute.pax_headers = {"SCHILY.xattr.user.colour": "red"}
    return [
        gzipped(
            *(member("etc", folder, mode=0o755), owned, null, attribute),
            *(member("etc/link", tarfile.SYMTYPE, "owned"), member("etc/hard", tarfile.LNKTYPE, "etc/owned")),
            *(member("tmp", folder, mode=0o1777), member("tmp/pipe", tarfile.FIFOTYPE)),
            *(member("gone", folder, mode=0o755), file("gone/x", b"1")),
            *(member("opaque", folder, mode=0o755), file("opaque/lower", b"1")),
            *(member("swap", folder, mode=0o755), file("swap/x", b"1"), file("kept", b"kept")),
        ),
        gzipped(
            *(file(".wh.gone"), member("opaque", folder, mode=0o700), file("opaque/.wh..wh..opq")),
            *(file("opaque/upper", b"2"), member("swap", tarfile.SYMTYPE, "etc")),
            file("etc/.wh.attr"),
        ),
        gzipped(member("gone", folder, mode=0o750), file("gone/y", b"3"), file("kept", b"changed", 0o600)),
    ]


def mounted(store: ImageStore, name: str, where: Path) -> list[tuple[object, ...]]:
    """What the overlay of an image shows, looked at in a mount namespace of its own."""
    rootfs = store.prepare("s" + os.urandom(8).hex(), store.resolve(name).id)
    where.mkdir()
    options = f"lowerdir={':'.join(rootfs['lower'])},upperdir={rootfs['upper']},workdir={rootfs['work']}"
    script = 'mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'
    code = (
        f"import sys, json; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from imagetrees import survey; from pathlib import Path\n"
        "print(json.dumps(survey(Path(sys.argv[1]))))"
    )
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", options, str(where), sys.executable, "-c", code]
    done = subprocess.run([*argv, str(where)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)]


def survey(root: Path) -> list[tuple[object, ...]]:
    """Every entry below a root with all that unpacking decides."""
    found: list[tuple[object, ...]] = []
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        kind, device = stat.S_IFMT(status.st_mode), status.st_rdev
        data = path.read_text() if kind == stat.S_IFREG else ""
        link = os.readlink(path) if kind == stat.S_IFLNK else ""
        colour = ""
        if kind == stat.S_IFREG and "user.colour" in os.listxattr(path):
            colour = os.getxattr(path, "user.colour").decode()
        links = 0 if kind == stat.S_IFDIR else status.st_nlink
        mode = 0 if path == root else status.st_mode
        # directories that gained or lost entries by overlaying have times of their own in each tool
        when = 0 if kind == stat.S_IFDIR else int(status.st_mtime)
        name = str(path.relative_to(root))
        found.append((name, mode, status.st_uid, status.st_gid, device, links, when, data, link, colour))
    return found
