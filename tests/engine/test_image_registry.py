"""Debian's docker-registry and skopeo's images: every format, real credentials, a full disk, kill -9.

Unpacked trees are compared with what umoci makes of the same image.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry, file, member, quick, tar
from house import SOURCE, wait_for
from images import Registry, write_layout
from memory_catalog import MemoryCatalog

from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.errors import NotFound, Unauthenticated
from nagaya.image.auth import RegistryAuth
from nagaya.image.store import ImageStore

pytestmark = pytest.mark.root

# htpasswd's line for the password "secret" (bcrypt, cost 4)
HTPASSWD = "me:$2b$04$mT2Nmv5Mtpqv1/2cw0rON.qJe8PvX94CjgNqzLGWkx3mBwjimcev6"


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


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sample") / "layout"
    write_layout(made, sample(), {"Cmd": ["true"]})
    return made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry"), port=free_port()) as running:
        yield running


def copy(source: str, target: str, *options: str) -> None:
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", "-q", "--dest-tls-verify=false", *options, source, target],
        check=True,
        capture_output=True,
        timeout=60,
    )


def store_at(path: Path) -> ImageStore:
    return ImageStore(str(path), MemoryCatalog(), quick())


def mounted(store: ImageStore, name: str, where: Path) -> list[tuple[object, ...]]:
    """What the overlay of an image shows, looked at in a mount namespace of its own."""
    rootfs = store.prepare("s" + os.urandom(8).hex(), store.resolve(name).id)
    where.mkdir()
    options = f"lowerdir={':'.join(rootfs['lower'])},upperdir={rootfs['upper']},workdir={rootfs['work']}"
    script = 'mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'
    code = (
        f"import sys, json; sys.path[:0] = {[str(SOURCE), str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_image_registry import survey; from pathlib import Path\n"
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


@pytest.mark.parametrize(
    ("change", "form", "magic"),
    [
        ((), ("--format", "oci"), b"\x1f\x8b"),
        ((), ("--format", "v2s2"), b"\x1f\x8b"),
        (("--dest-compress", "--dest-compress-format", "zstd"), ("--format", "oci"), b"\x28\xb5\x2f\xfd"),
        (("--dest-decompress",), ("--preserve-digests",), b""),
    ],
    ids=["oci-gzip", "docker-schema-2", "zstd", "plain"],
)
def test_every_format_gives_umocis_tree(
    change: tuple[str, ...],
    form: tuple[str, ...],
    magic: bytes,
    registry: Registry,
    layout: Path,
    tmp_path: Path,
) -> None:
    name = f"{registry.address}/sample/{tmp_path.name.lower().strip('_')}:1"
    source = f"oci:{layout}:latest"
    if change:  # only a copy into a directory changes blobs as told
        copy(source, f"dir:{tmp_path}/middle", *change)
        source = f"dir:{tmp_path}/middle"
    copy(source, f"docker://{name}", *form)
    store = store_at(tmp_path / "root")
    image = store.pull(name)
    expected = tmp_path / "umoci"
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:latest", str(expected)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert mounted(store, name, tmp_path / "merged") == survey(expected)
    for digest, diff_id in zip(_layers(tmp_path, image.manifest), image.document.diff_ids, strict=True):
        assert (tmp_path / "root/content/blobs" / digest.replace(":", "/")).read_bytes().startswith(magic)
        assert (digest == diff_id) is (magic == b"")  # plain: nothing was compressed


def _layers(path: Path, manifest: str) -> list[str]:
    document = json.loads((path / "root/content/blobs" / manifest.replace(":", "/")).read_bytes())
    return [layer["digest"] for layer in document["layers"]]


def test_basic_credentials(layout: Path, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD + "\n")
    port = free_port()
    config = tmp_path / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {tmp_path}/data}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\nauth:\n  htpasswd: {{realm: r, path: {tmp_path}/htpasswd}}\n"
    )
    name = f"127.0.0.1:{port}/private/x:1"
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: _answers(port), 30, "the registry")
        copy(f"oci:{layout}:latest", f"docker://{name}", "--dest-creds", "me:secret")
        with pytest.raises(NotFound, match="pull access denied"):
            store_at(tmp_path / "root").pull(name)
        with pytest.raises(Unauthenticated, match="pull access denied"):
            store_at(tmp_path / "root").pull(name, auth=RegistryAuth("me", "wrong"))
        assert store_at(tmp_path / "root").pull(name, auth=RegistryAuth("me", "secret")).names
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_pulled_index_and_a_mirror(registry: Registry, layout: Path, tmp_path: Path) -> None:
    copy(f"oci:{layout}:latest", f"docker://{registry.address}/mirrored/x:1")
    mirrors = {"registry.invalid": [f"http://{registry.address}"]}
    store = ImageStore(str(tmp_path), MemoryCatalog(), quick(mirrors=mirrors))
    assert store.pull("registry.invalid/mirrored/x:1").names[0].startswith("registry.invalid/mirrored/x")


# bad days: a pull in a process of its own

PULL = """
import sys
sys.path[:0] = {path!r}
from fakeregistry import quick
from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger
from nagaya.errors import NagayaError
from nagaya.image.store import ImageStore
store = ImageStore(sys.argv[1], LedgerCatalog(Ledger(sys.argv[1] + "/ledger.db")), quick())
try:
    store.pull(sys.argv[2])
except NagayaError as error:
    print(type(error).__name__, error)
"""


def pulling(root: Path, name: str, *prefix: str) -> subprocess.Popen[str]:
    code = PULL.format(path=[str(SOURCE), str(Path(__file__).parents[1] / "support"), *sys.path])
    argv = [*prefix, sys.executable, "-c", code, str(root), name]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_is_one_line_and_stays_no_fuller(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with FakeRegistry() as registry:
        registry.image(tar(file("small", b"1" * 1000)), tar(file("big", os.urandom(12 << 20))))
        script = (
            'mount -t tmpfs -o size=16m tmpfs "$1" || exit 9; root=$1; shift; "$@"; '
            'find "$root/content" -type f; ls "$root/snapshots/l"'
        )
        process = pulling(root, registry.name(), "unshare", "--mount", "sh", "-c", script, "sh", str(root))
        out, err = process.communicate(timeout=60)
    lines = out.splitlines()
    assert lines[0].startswith("ResourceExhausted ") and lines[0].endswith("no space left on device"), (
        out + err
    )
    assert lines[1:] == ["empty"]


def test_kill_9_at_any_moment_of_a_pull_leaves_what_recovery_can_use(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    layers = [
        tar(file(f"f{n}", os.urandom(1 << 20)), *(file(f"{n}/{i}") for i in range(300))) for n in range(4)
    ]
    with FakeRegistry() as registry:
        registry.image(*layers)
        for number in range(6):
            before = len(registry.asked)
            process = pulling(root, registry.name())
            wait_for(lambda before=before: len(registry.asked) > before, 30, "the pull")  # type: ignore[misc]
            time.sleep(0.015 * number)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        ledger = Ledger(str(root / "ledger.db"))
        try:
            store = ImageStore(str(root), LedgerCatalog(ledger), quick())
            store.recover()
            kept = {row.directory for row in LedgerCatalog(ledger).layers()}
            assert {p.name for p in (root / "snapshots/l").iterdir()} == kept | {"empty"}
            image = store.pull(registry.name())
            lower = store.prepare("c" * 64, image.id)["lower"]
        finally:
            ledger.close()
    assert len(lower) == 4
    for number, directory in enumerate(reversed(lower)):
        assert Path(directory, f"f{number}").stat().st_size == 1 << 20
        assert len(list(Path(directory, str(number)).iterdir())) == 300
