"""Debian's docker-registry and skopeo's images: every format, real credentials, a full disk.

Unpacked trees are compared with what umoci makes of the same image.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry, file, quick, tar
from house import SOURCE, wait_for
from images import Registry, write_layout
from imagetrees import free_port, mounted, sample, survey
from memory_catalog import MemoryCatalog

from nagaya.errors import NotFound, Unauthenticated
from nagaya.image.auth import RegistryAuth
from nagaya.image.store import ImageStore

pytestmark = pytest.mark.root

# htpasswd's line for the password "secret" (bcrypt, cost 4)
HTPASSWD = "me:$2b$04$mT2Nmv5Mtpqv1/2cw0rON.qJe8PvX94CjgNqzLGWkx3mBwjimcev6"


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
