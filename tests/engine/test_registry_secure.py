"""Debian's docker-registry as people run it: behind tokens, behind TLS, behind bad cables, as a mirror."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fakeregistry import Answer, FakeRegistry, quick
from house import House
from images import Registry, busybox_layers, layer, write_layout
from memory_catalog import MemoryCatalog

from nagaya.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable
from nagaya.image.auth import RegistryAuth
from nagaya.image.pull import Progress
from nagaya.image.store import ImageStore


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def store_at(path: Path, **config: object) -> ImageStore:
    return ImageStore(str(path), MemoryCatalog(), quick(**config))


def left(path: Path) -> list[str]:
    found = [str(p.relative_to(path)) for p in (path / "content").rglob("*") if p.is_file()]
    return found + [p.name for p in (path / "snapshots/l").iterdir() if p.name != "empty"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("layout") / "oci"
    write_layout(made, [layer([("a", b"one\n")]), layer([("b", b"two\n")])], {"Cmd": ["true"]})
    return f"oci:{made}:latest"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate for 127.0.0.1 in one PEM file."""
    path = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=nagt -keyout key.pem -out cert.pem"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    both = path / "both.pem"
    both.write_bytes((path / "key.pem").read_bytes() + (path / "cert.pem").read_bytes())
    return both


# tokens


class TokenServer:
    """Docker's token server (distribution, spec/auth/jwt.md) beside the test: tokens signed by openssl."""

    def __init__(self, certificate: Path) -> None:
        self._key = certificate
        text = certificate.read_text()
        inner = re.search(r"BEGIN CERTIFICATE-----(.*?)-----END", text, re.S)
        assert inner is not None
        self._chain = ["".join(inner[1].split())]
        self.given: list[str] = []  # scopes

    def script(self, path: str, headers: dict[str, str]) -> None:
        query = parse_qs(urlsplit(path).query)
        if headers.get("authorization") != "Basic " + base64.b64encode(b"me:secret").decode():
            raise Answer(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}')
        assert query["service"] == ["the-service"]
        access = []
        for scope in query.get("scope", []):
            self.given.append(scope)
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        raise Answer(200, json.dumps({"token": self._sign(access), "expires_in": 300}).encode())

    def _sign(self, access: Sequence[object]) -> str:
        now = int(time.time())
        header = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        claims = {
            "iss": "the-issuer",
            "sub": "me",
            "aud": "the-service",
            "exp": now + 300,
            "nbf": now - 60,
            "iat": now,
            "jti": str(len(self.given)),
            "access": access,
        }
        text = b".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(sign, input=text, check=True, capture_output=True, timeout=30).stdout
        return (text + b"." + _base64(signature)).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def test_a_registry_that_wants_signed_tokens(certificate: Path, layout: str, tmp_path: Path) -> None:
    server = TokenServer(certificate)
    with FakeRegistry() as host:
        host.script = server.script
        token = {
            "realm": f"http://{host.address}/token",
            "service": "the-service",
            "issuer": "the-issuer",
            "rootcertbundle": str(certificate),
        }
        with Registry(tmp_path / "registry", port=free_port(), auth={"token": token}) as registry:
            name = registry.push(layout, "team/x:1", "--dest-creds", "me:secret")
            with pytest.raises(Unauthenticated, match="incorrect username or password"):
                store_at(tmp_path / "a").pull(name, auth=RegistryAuth("me", "wrong"))
            with pytest.raises(
                NotFound, match=r"pull access denied for .*/team/x, repository does not exist or"
            ):
                store_at(tmp_path / "a").pull(name)
            assert left(tmp_path / "a") == []
            server.given.clear()
            image = store_at(tmp_path / "a").pull(name, auth=RegistryAuth("me", "secret"))
            assert server.given == ["repository:team/x:pull"]  # one token for manifest, config and layers
            server.given.clear()
            store = store_at(tmp_path / "a")
            store.pull(name, auth=RegistryAuth("me", "secret"))
            other = f"{registry.address}/team/y:1"
            store.tag(name, other)
            told: list[Progress] = []
            store.push(other, RegistryAuth("me", "secret"), told.append)
            assert sum(p.status == "Mounted from team/x" for p in told) == 2
            assert "repository:team/y:pull,push" in " ".join(server.given)
            with pytest.raises(Unauthenticated, match="incorrect username or password"):
                store.push(other, RegistryAuth("me", "wrong"))
            with pytest.raises((Unauthenticated, PermissionDenied)):
                store.push(other, RegistryAuth())
            config = tmp_path / "config.json"
            packed = base64.b64encode(b"me:secret").decode()
            config.write_text(json.dumps({"auths": {f"https://{registry.address}/v1/": {"auth": packed}}}))
            assert store_at(tmp_path / "b", docker_config=str(config)).pull(name).id == image.id


# TLS


@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_a_registry_with_a_certificate_of_its_own(certificate: Path, layout: str, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry", port=free_port(), certificate=certificate) as registry:
        name = registry.push(layout, "x:1")
        known = store_at(tmp_path / "known", ca={registry.address: str(certificate)})
        image = known.pull(name)
        assert image.names[0] == name
        known.tag(name, f"{registry.address}/pushed:1")
        known.push(f"{registry.address}/pushed:1")
        assert known.pull(f"{registry.address}/pushed:1").manifest == image.manifest
        # 127.0.0.0/8 needs no certificate, unless somebody says which one it has
        assert store_at(tmp_path / "insecure").pull(name).names[0] == name
        other = tmp_path / "other.pem"
        make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout /dev/null -out"
        subprocess.run([*make.split(), str(other)], check=True, capture_output=True, timeout=60)
        with pytest.raises(Unavailable, match=r'Get "https://127.*tls: certificate verify failed') as caught:
            store_at(tmp_path / "wrong", ca={registry.address: str(other)}).pull(name)
        assert "\n" not in str(caught.value)
        with pytest.raises(Unavailable, match=r"certificate authorities in /nowhere\.pem"):
            store_at(tmp_path / "wrong", ca={registry.address: "/nowhere.pem"}).pull(name)
        assert left(tmp_path / "wrong") == []


# cables


class Cable:
    """A TCP connection to a port, unplugged after so many bytes, as often as told."""

    def __init__(self, port: int, after: int, times: int, *, up: bool = False) -> None:
        self._target, self._after, self.times = port, after, times
        self._cuts_uploads = up
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = b""  # what went up
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:  # the client keeps connections for its next request
            _shut(end)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._ends += [near, far]
            for work in (self._up, self._down):
                self._threads.append(threading.Thread(target=work, args=(near, far), daemon=True))
                self._threads[-1].start()

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        try:
            passed = 0
            while data := near.recv(65536):
                self.asked += data[:2000] if self._cuts_uploads else data
                far.sendall(data)
                passed += len(data)
                if self._cuts_uploads and passed > self._after and self.times > 0:
                    self.times -= 1
                    break
        except OSError:
            pass
        for end in (near, far):
            _shut(end)

    def _down(self, near: socket.socket, far: socket.socket) -> None:
        passed = 0
        try:
            while data := far.recv(65536):
                near.sendall(data)
                passed += len(data)
                if not self._cuts_uploads and passed > self._after and self.times > 0:
                    self.times -= 1
                    break
        except OSError:
            pass
        for end in (near, far):
            _shut(end)


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def test_a_download_goes_on_where_the_cable_was_unplugged(tmp_path: Path) -> None:
    data = b"".join(i.to_bytes(4, "big") for i in range(1 << 20))
    write_layout(tmp_path / "oci", [layer([("big", data)])], {"Cmd": ["true"]})
    port = free_port()
    with Registry(tmp_path / "registry", port=port) as registry, Cable(port, 300_000, 3) as cable:
        registry.push(f"oci:{tmp_path}/oci:latest", "x:1")
        name = f"{cable.address}/x:1"
        store = store_at(tmp_path / "root")
        image = store.pull(name)
        assert cable.times == 0
        taken_up = [int(n) for n in re.findall(rb"(?i)range: bytes=(\d+)-", cable.asked)]
        assert len(taken_up) == 3 and taken_up == sorted(taken_up) and taken_up[0] > 200_000
        assert Path(store.prepare("c" * 64, image.id)["lower"][0], "big").read_bytes() == data
    assert list((tmp_path / "root/content/ingest").iterdir()) == []


def test_an_upload_survives_that_the_cable_was_unplugged(tmp_path: Path) -> None:
    """This registry wants it all again: what it got of a piece that broke off it takes for damage."""
    data = os.urandom(8 << 20)
    write_layout(tmp_path / "oci", [layer([("big", data)]), layer([("small", b"1")])], {"Cmd": ["true"]})
    port = free_port()
    with Registry(tmp_path / "registry", port=port) as registry, Cable(port, 1_000_000, 2, up=True) as cable:
        source = registry.push(f"oci:{tmp_path}/oci:latest", "source:1")
        store = store_at(tmp_path / "root")
        image = store.pull(source)
        name = f"{cable.address}/x/y:1"
        store.tag(source, name)
        store.push(name)
        assert cable.times == 0
        fresh = store_at(tmp_path / "fresh").pull(f"{registry.address}/x/y:1")
        assert (fresh.id, fresh.manifest) == (image.id, image.manifest)


def test_eight_pulls_at_once_of_images_that_share_layers(tmp_path: Path) -> None:
    shared = layer([("shared", bytes(range(256)) * 4096)])
    for number in range(2):
        write_layout(tmp_path / f"oci{number}", [shared, layer([("own", b"%d" % number)])], {"Cmd": ["true"]})
    port = free_port()
    with Registry(tmp_path / "registry", port=port) as registry, Cable(port, 0, 0) as cable:
        for number in range(2):
            registry.push(f"oci:{tmp_path}/oci{number}:latest", f"x:{number}")
        store = store_at(tmp_path / "root")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: store.pull(f"{cable.address}/x:{n % 2}"), range(8)))
        asked = re.findall(rb"GET (/v2/x/blobs/\S+)", cable.asked)
    assert len({image.id for image in found}) == 2
    layers = {
        d["digest"].encode()
        for d in _layers(tmp_path, found[0].manifest) + _layers(tmp_path, found[1].manifest)
    }
    assert len(layers) == 3
    assert all(sum(path.endswith(digest) for path in asked) == 1 for digest in layers)
    assert len([n for n in left(tmp_path / "root") if "/" not in n]) == 3


def _layers(path: Path, manifest: str) -> list[dict[str, str]]:
    found = json.loads((path / "root/content/blobs" / manifest.replace(":", "/")).read_bytes())
    return list(found["layers"])


# the daemon


@pytest.fixture
def house() -> Iterator[House]:
    """A daemon whose network has a registry at 10.231.9.1 that may be plain and is Docker Hub's mirror,
    and at 10.231.8.1, where it may not."""
    config = (
        '[registries]\ninsecure = ["10.231.9.0/24"]\nretries = 1\n'
        '[registries.mirrors]\n"docker.io" = ["http://10.231.9.1:5000"]\n'
    )
    made = House(config=config)
    for address in ("10.231.9.1/32", "10.231.8.1/32"):
        subprocess.run(made.inside(["ip", "address", "add", address, "dev", "lo"]), check=True)
    with made:
        yield made


@pytest.mark.root
def test_the_daemons_configuration_names_mirrors_and_insecure_registries(
    house: House, tmp_path: Path
) -> None:
    write_layout(tmp_path / "oci", busybox_layers(), {"Cmd": ["cat", "/data/changed"], "Env": ["PATH=/bin"]})
    source = f"oci:{tmp_path}/oci:latest"
    with Registry(tmp_path / "registry", house.inside([]), host="10.231.9.1") as registry:
        registry.push(source, "library/nagt:1")
        registry.push(source, "team/nagt:1")
        assert house.ok("run", "--rm", "nagt:1") == "new"
        assert house.ok("run", "--rm", "10.231.9.1:5000/team/nagt:1") == "new"
        assert set(house.ok("images", "--format", "{{.Repository}}:{{.Tag}}").split()) == {
            "nagt:1",
            "10.231.9.1:5000/team/nagt:1",
        }
    with Registry(tmp_path / "registry", house.inside([]), host="10.231.8.1"):
        refused = house.docker("pull", "10.231.8.1:5000/team/nagt:1")
        assert refused.returncode == 1
        assert re.search(rb'Get "https://10\.231\.8\.1:5000/v2/.*": tls: ', refused.stderr), refused.stderr
    gone = house.docker("pull", "10.231.9.1:5000/team/nagt:2")
    assert gone.returncode == 1 and b"connection refused" in gone.stderr, gone.stderr
    assert house.ok("rmi", "nagt:1").startswith("Untagged: nagt:1\n")
    assert "Deleted: sha256:" in house.ok("rmi", "10.231.9.1:5000/team/nagt:1")
    assert list((house.root / "content").rglob("blobs/*/*")) == []
    assert [p.name for p in (house.root / "snapshots/l").iterdir()] == ["empty"]
