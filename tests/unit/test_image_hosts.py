"""Settings for single registries: who is asked, in what order, how it is trusted, and what it is told."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import Answer, FakeRegistry, digest_of, file, quick, tar
from images import Registry, layer, write_layout
from imagetrees import free_port
from memory_catalog import MemoryCatalog
from parcels import docker_archive, packed, pieces

from nagaya.errors import InvalidArgument, NagayaError, NotFound, Unavailable
from nagaya.image import complaints, hosts
from nagaya.image.hosts import Host
from nagaya.image.store import ImageStore
from nagaya.oci import platform

LAYER = tar(file("a", b"a"), owner=os.getuid())
HOME = "https://r.example"


def write(directory: Path, name: str, text: str) -> None:
    (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / name / "hosts.toml").write_text(text)


def store_at(path: Path, **changes: Any) -> ImageStore:
    return ImageStore(str(path / "root"), MemoryCatalog(), quick(hosts_dir=str(path / "hosts"), **changes))


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        running.image(LAYER)
        yield running


@pytest.fixture
def mirror() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        running.image(LAYER)
        yield running


def test_a_file_is_read_as_containerd_reads_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        "r.example:5000",
        """
        server = "https://real.example/v2"
        ca = "/server.pem"
        [host."https://one.example"]
        capabilities = ["pull"]
        client = [["/cert.pem", "/key.pem"], ["/both.pem"]]
        [host."http://two.example:81/some/path/"]
        skip_verify = true
        override_path = true
        ca = ["/a.pem", "/b.pem"]
        [host."http://two.example:81/some/path/".header]
        X-One = "1"
        X-Two = ["2", "3"]
        """,
    )
    found = hosts.load(str(tmp_path), "r.example:5000", HOME)
    assert found is not None
    assert found.server == Host(
        "https://real.example", frozenset(("pull", "resolve", "push")), ("/server.pem",)
    )
    one, two = found.mirrors
    assert one == Host(
        "https://one.example", frozenset(("pull",)), client=(("/cert.pem", "/key.pem"), ("/both.pem", ""))
    )
    assert (two.url, two.netloc, two.own_path) == ("http://two.example:81/some/path", "two.example:81", True)
    assert two.skip_verify and two.ca == ("/a.pem", "/b.pem")
    assert two.headers == (("X-One", "1"), ("X-Two", "2"), ("X-Two", "3"))
    assert two.capabilities == frozenset(("pull", "resolve"))


def test_whose_file_counts(tmp_path: Path) -> None:
    assert hosts.load(str(tmp_path), "r.example", HOME) is None
    assert hosts.load("", "r.example", HOME) is None
    for name, server in (("_default", "d"), ("r.example_5000_", "u"), ("r.example:5000", "c")):
        write(tmp_path, name, f'server = "https://{server}"')
        found = hosts.load(str(tmp_path), "r.example:5000", HOME)
        assert found is not None and found.server.url == f"https://{server}"
    other = hosts.load(str(tmp_path), "other.example", HOME)
    assert other is not None and other.server.url == "https://d"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("server = 3", r"Expected `str`"),
        ("sever = 'x'", "unknown field `sever`"),
        ("[host", "hosts.toml: "),
        ('[host."ftp://x"]', "is no URL of a registry"),
        ('[host."https://x"]\ncapabilities = ["steal"]', "unknown capability 'steal'"),
        ('[host."https://x"]\nskip_verify = 1', "Expected `bool`"),
        ('[host."https://x"]\nclient = [["a", "b", "c"]]', "want a file, or pairs"),
        ('[host."https://x"]\nheader = { "A\\nB" = "x" }', "is not valid"),
        ('[host."https://x"]\nheader = { A = "x\\r\\ny" }', "is not valid"),
        ("\udcff", "hosts.toml: "),
    ],
)
def test_a_file_that_is_wrong_is_named(text: str, why: str, tmp_path: Path) -> None:
    write(tmp_path / "hosts", "127.0.0.1:1", "")
    path = tmp_path / "hosts/127.0.0.1:1/hosts.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidArgument, match=why) as caught:
        store_at(tmp_path).pull("127.0.0.1:1/x:1")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_who_is_asked_for_what(registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path) -> None:
    """Any registry can have mirrors; one that only pulls is not asked what a tag means."""
    text = f'[host."http://{mirror.address}"]\ncapabilities = ["pull"]\n'
    write(tmp_path / "hosts", registry.address, text)
    store_at(tmp_path).pull(registry.name())
    assert not mirror.count("/manifests/1") and mirror.count("/blobs/") == 2
    assert registry.count("/manifests/1") == 1 and not registry.count("/blobs/")
    # and it is told so without a restart
    write(tmp_path / "hosts", registry.address, f'[host."http://{mirror.address}"]\n')
    registry.asked.clear()
    ImageStore(str(tmp_path / "again"), MemoryCatalog(), quick(hosts_dir=str(tmp_path / "hosts"))).pull(
        registry.name()
    )
    assert mirror.count("/manifests/1") == 1 and registry.asked == []


def test_where_pushes_go(registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path) -> None:
    store = store_at(tmp_path)
    name = registry.name("p")
    store.load(pieces(packed(docker_archive(LAYER, tags=[name]))))
    write(tmp_path / "hosts", registry.address, f'[host."http://{mirror.address}"]\n')
    store.push(name)
    assert "p" in registry.manifests and "p" not in mirror.manifests
    text = f'[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve", "push"]\n'
    write(tmp_path / "hosts", registry.address, text)
    store.push(name)
    assert "p" in mirror.manifests


def test_a_path_of_its_own_and_headers_that_stay_there(
    registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path
) -> None:
    text = f'[host."http://{mirror.address}/proxy/v9"]\noverride_path = true\nheader = {{ X-Secret = "s" }}\n'
    write(tmp_path / "hosts", registry.address, text)

    def script(path: str, headers: dict[str, str]) -> None:
        if path == "/v2/":
            return
        assert path.startswith("/proxy/v9/a/b/")
        if "/blobs/" in path:
            digest = path.rpartition("/")[2]
            raise Answer(307, b"", {"Location": f"http://{registry.address}/v2/a/b/blobs/{digest}"})

    mirror.script = script
    store_at(tmp_path).pull(registry.name())
    asked = [headers for path, headers in mirror.asked if path != "/v2/"]
    assert asked and all(headers.get("x-secret") == "s" for headers in asked)
    assert registry.asked and not any("x-secret" in headers for _, headers in registry.asked)


def certificates(path: Path) -> None:
    """An authority, and certificates by it for 127.0.0.1 and for a client."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=path, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    (path / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = ("x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(*sign, "-in", f"{name}.csr", "-extfile", "san", "-out", f"{name}.pem")
        both = (path / f"{name}.key").read_bytes() + (path / f"{name}.pem").read_bytes()
        (path / f"{name}-both.pem").write_bytes(both)


def test_authorities_and_client_certificates(tmp_path: Path) -> None:
    certificates(tmp_path)
    write_layout(tmp_path / "oci", [layer([("a", b"1")])], {"Cmd": ["true"]})
    where, server = tmp_path / "registry", tmp_path / "server-both.pem"
    with Registry(where, port=free_port(), certificate=server) as registry:
        name = registry.push(f"oci:{tmp_path}/oci:latest", "x:1")
        write(tmp_path / "hosts", registry.address, f'ca = "{tmp_path}/ca.pem"')
        store_at(tmp_path).pull(name)
        # an authority that is named is the only one: loopback or not
        write(tmp_path / "hosts", registry.address, f'ca = "{tmp_path}/client.pem"')
        with pytest.raises(Unavailable, match="certificate verify failed"):
            store_at(tmp_path).pull(name)
        write(tmp_path / "hosts", registry.address, 'ca = "/nowhere.pem"')
        with pytest.raises(Unavailable, match=r"certificate authorities in /nowhere\.pem"):
            store_at(tmp_path).pull(name)
    config = json.loads((where / "config.yml").read_text())
    config["http"]["tls"]["clientcas"] = [f"{tmp_path}/ca.pem"]
    (where / "config.yml").write_text(json.dumps(config))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(where / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ask = "curl -sk --retry 50 --retry-delay 0 --retry-all-errors --retry-max-time 20".split()
        key = ["--cert", f"{tmp_path}/client.pem", "--key", f"{tmp_path}/client.key"]
        subprocess.run([*ask, *key, f"https://{registry.address}/v2/"], check=True, capture_output=True)
        write(tmp_path / "hosts", registry.address, f'ca = "{tmp_path}/ca.pem"')
        with pytest.raises(Unavailable):
            store_at(tmp_path).pull(name)
        for client in (
            f'[["{tmp_path}/client.pem", "{tmp_path}/client.key"]]',
            f'"{tmp_path}/client-both.pem"',
        ):
            write(tmp_path / "hosts", registry.address, f'ca = "{tmp_path}/ca.pem"\nclient = {client}')
            store_at(tmp_path).pull(name)
        write(tmp_path / "hosts", registry.address, f'ca = "{tmp_path}/ca.pem"\nclient = "/nowhere.pem"')
        with pytest.raises(Unavailable, match=r"client certificate /nowhere\.pem"):
            store_at(tmp_path).pull(name)
    finally:
        process.kill()
        process.wait()


def test_rate_limits_are_shown(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = {"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "0;w=21600", "Retry-After": "3600"}
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your limit"}]}'

    def script(path: str, headers: dict[str, str]) -> None:
        if "/manifests/" in path:
            raise Answer(429, body, limits)

    registry.script = script
    with pytest.raises(NagayaError) as caught:
        store_at(tmp_path).pull(registry.name())
    assert str(caught.value) == (
        "toomanyrequests: You have reached your limit (limit: 100 in 21600 s, left: 0, try again in 3600 s)"
    )
    assert complaints.rate_limit({"RateLimit-Limit": "x" * 99}) == ""


def test_older_processors_images(registry: FakeRegistry, tmp_path: Path) -> None:
    """An ARM v7 runs what was made for v6 and v5, and not the reverse."""
    kind = "application/vnd.oci.image.index.v1+json"

    def index(*variants: str) -> None:
        entries = []
        for variant in variants:
            data = tar(file(variant, variant.encode()), owner=os.getuid())
            described = registry.image(data, where=platform.Platform("linux", "arm", variant))
            where = {"os": "linux", "architecture": "arm", "variant": variant}
            entries.append({**described, "platform": where})
        registry.manifest({"schemaVersion": 2, "mediaType": kind, "manifests": entries}, "arm", kind=kind)

    store = store_at(tmp_path)
    for offered, wanted, expected in (
        (("v5", "v6"), "linux/arm/v7", "v6"),
        (("v5", "v6"), "linux/arm", "v6"),
        (("v5",), "linux/arm/v6", "v5"),
        (("v6", "v7"), "linux/arm64", "v7"),
        (("v6", "v7"), "linux/arm/v6", "v6"),
    ):
        index(*offered)
        image = store.pull(registry.name("arm"), wanted)
        assert image.document.variant == expected, (offered, wanted)
    index("v7")
    with pytest.raises(NotFound, match="no matching manifest for linux/arm/v6"):
        store.pull(registry.name("arm"), "linux/arm/v6")
    assert digest_of(LAYER) in registry.blobs
