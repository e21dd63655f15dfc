"""Images over the socket: pulled with and without credentials, listed, removed, measured."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib import Status
from images import Registry, busybox_layers, write_layout
from kubelet import Kubelet, Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

# "me" with the password "secret", by bcrypt
HTPASSWD = "me:$2b$04$9d48DBh2W4dXtpWyO13qferIJ.8Gws0ectICBOaPlmfhrdwI/oDj6\n"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout")
    write_layout(path / "plain", busybox_layers(), {"Cmd": ["sh"], "User": "1234:5", "Env": ["A=b"]})
    write_layout(path / "named", busybox_layers()[:1], {"Cmd": ["sh"], "User": "operator"})
    return path


@pytest.fixture(scope="module")
def registry(node: Node, layout: Path) -> Iterator[Registry]:
    with Registry(node.house.base / "registry", node.house.inside([])) as made:
        made.push(f"oci:{layout}/plain:latest", "team/app:one")
        made.push(f"oci:{layout}/plain:latest", "team/app:two")
        made.push(f"oci:{layout}/named:latest", "team/named:latest")
        yield made


def spec(name: str) -> cri.ImageSpec:
    return cri.ImageSpec(image=name)


def tags(kubelet: Kubelet) -> set[str]:
    return {tag for image in kubelet.ListImages().images for tag in image.repo_tags}


def test_an_image_from_pull_to_removal(node: Node, registry: Registry) -> None:
    kubelet = node.kubelet
    one, two = f"{registry.address}/team/app:one", f"{registry.address}/team/app:two"
    assert not kubelet.ImageStatus(image=spec(one)).HasField("image")
    pulled = kubelet.PullImage(image=spec(one)).image_ref
    assert kubelet.PullImage(image=spec(two)).image_ref == pulled
    assert kubelet.PullImage(image=spec(one)).image_ref == pulled
    image = kubelet.ImageStatus(image=spec(one)).image
    assert image.id == pulled
    assert set(image.repo_tags) == {one, two}
    (digest,) = image.repo_digests
    assert digest.startswith(f"{registry.address}/team/app@sha256:")
    assert image.uid.value == 1234
    assert image.size > 1000
    assert kubelet.ImageStatus(image=spec(digest)).image.id == pulled
    assert kubelet.ImageStatus(image=spec(pulled)).image.id == pulled
    info = kubelet.ImageStatus(image=spec(one), verbose=True).info["info"]
    assert json.loads(info)["imageSpec"]["config"]["Env"] == ["A=b"]
    assert {one, two} <= tags(kubelet)
    only = kubelet.ListImages(filter=cri.ImageFilter(image=spec(one))).images
    assert [found.id for found in only] == [pulled]
    assert not kubelet.ListImages(filter=cri.ImageFilter(image=spec("not/here"))).images
    streamed = {i.id for message in kubelet.StreamImages() for i in message.images}
    assert streamed == {i.id for i in kubelet.ListImages().images}
    for _ in range(2):
        kubelet.RemoveImage(image=spec(one))
    assert not {one, two} & tags(kubelet)
    assert not kubelet.ImageStatus(image=spec(two)).HasField("image")


def test_a_user_by_name(node: Node, registry: Registry) -> None:
    name = f"{registry.address}/team/named"
    node.kubelet.PullImage(image=spec(name))
    image = node.kubelet.ImageStatus(image=spec(name)).image
    assert (image.username, image.HasField("uid")) == ("operator", False)
    assert list(image.repo_tags) == [f"{name}:latest"]


def test_an_image_stays_for_its_containers(node: Node, registry: Registry, pod: str) -> None:
    name = f"{registry.address}/team/app:one"
    node.kubelet.PullImage(image=spec(name))
    config = node.container_config("busybox", "sleep", "600", image=spec(name))
    config.linux.security_context.run_as_user.value = 0
    container = node.create(pod, config=config)
    node.kubelet.RemoveImage(image=spec(name))
    node.kubelet.StartContainer(container_id=container)
    assert node.exec(container, "cat", "/data/kept") == "kept\n"


def test_credentials_are_for_the_server_that_they_name(node: Node, layout: Path) -> None:
    base = node.house.base / "secret"
    base.mkdir()
    (base / "htpasswd").write_text(HTPASSWD)
    auth: dict[str, object] = {"htpasswd": {"realm": "here", "path": str(base / "htpasswd")}}
    pull = node.kubelet.PullImage
    with Registry(base / "registry", node.house.inside([]), port=5001, auth=auth) as registry:
        registry.push(f"oci:{layout}/plain:latest", "private/app:1", "--dest-creds=me:secret")
        name = spec(f"{registry.address}/private/app:1")
        refused(lambda: pull(image=name), Status.NOT_FOUND, "pull access denied")
        wrong = cri.AuthConfig(username="me", password="wrong")
        refused(lambda: pull(image=name, auth=wrong), Status.UNAUTHENTICATED)
        other = cri.AuthConfig(
            username="me", password="secret", server_address="https://elsewhere.example/v1/"
        )
        refused(lambda: pull(image=name, auth=other), Status.NOT_FOUND, "pull access denied")
        garbage = cri.AuthConfig(auth="not base64")
        refused(lambda: pull(image=name, auth=garbage), Status.INVALID_ARGUMENT, "auth.auth")
        text = base64.b64encode(b"me:secret").decode()
        for good in (
            cri.AuthConfig(username="me", password="secret"),
            cri.AuthConfig(auth=text, server_address=f"http://{registry.address}"),
        ):
            assert pull(image=name, auth=good).image_ref.startswith("sha256:")
            node.kubelet.RemoveImage(image=name)


def test_what_cannot_be_pulled(node: Node, registry: Registry) -> None:
    pull = node.kubelet.PullImage
    refused(lambda: pull(image=spec(f"{registry.address}/no/such:1")), Status.NOT_FOUND, "no/such")
    refused(lambda: pull(image=spec("127.0.0.1:9/x")), Status.UNAVAILABLE, "127.0.0.1:9")
    for name in ("", "host.invalid/UPPER", "a b"):
        refused(lambda name=name: pull(image=spec(name)), Status.INVALID_ARGUMENT)  # type: ignore[misc]
    for call in (node.kubelet.ImageStatus, node.kubelet.RemoveImage):
        refused(call, Status.INVALID_ARGUMENT, "image.image")


def test_the_disk_of_images(node: Node, registry: Registry) -> None:
    node.kubelet.PullImage(image=spec(f"{registry.address}/team/app:one"))
    found = node.kubelet.ImageFsInfo()
    (usage,) = found.image_filesystems
    assert usage.fs_id.mountpoint.startswith(str(node.house.root))
    assert usage.used_bytes.value > 1000
    assert usage.inodes_used.value > 10
    assert usage.timestamp > 0
    assert len(found.container_filesystems) == 1


def test_a_container_s_image_has_the_name_that_the_pod_has_for_it(
    node: Node, registry: Registry, pod: str
) -> None:
    kubelet = node.kubelet
    one, two = f"{registry.address}/team/app:one", f"{registry.address}/team/app:two"
    pulled, _ = (kubelet.PullImage(image=spec(name)).image_ref for name in (one, two))
    config = node.container_config()
    config.image.image = pulled  # kubelets name the image's id, and beside it what the pod said
    config.image.user_specified_image = two
    status = node.status(node.create(pod, config=config))
    assert (status.image.image, status.image.user_specified_image, status.image_id) == (two, two, pulled)
    (digest,) = kubelet.ImageStatus(image=spec(one)).image.repo_digests
    assert status.image_ref == digest
    (listed,) = kubelet.ListContainers(filter=cri.ContainerFilter(id=status.id)).containers
    assert (listed.image.image, listed.image_ref, listed.image_id) == (two, digest, pulled)
