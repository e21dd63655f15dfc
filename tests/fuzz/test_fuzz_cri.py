"""Every RPC of the CRI is asked with random messages: an answer in time, or an error that is no defect."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError, Status
from kubelet import Kubelet, Node

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

ROUNDS = 25
IDS = ("container_id", "pod_sandbox_id")
WORDS = (
    "",
    "x",
    "/",
    "..",
    "/tmp",
    "../../etc",
    "a" * 300,
    "\0",
    "\n",
    "é",
    "-1",
    "0123abcd",
    "nagaya/busybox",
    "%s",
)
NUMBERS = (0, 1, -1, 2, 7, 1000, 65536, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        yield made


def scalar(field: Any, choose: random.Random) -> Any:
    match field.type:
        case Field.TYPE_STRING:
            return choose.choice(WORDS)
        case Field.TYPE_BYTES:
            return choose.randbytes(choose.randrange(20))
        case Field.TYPE_BOOL:
            return choose.random() < 0.5
        case Field.TYPE_DOUBLE:
            return choose.random()
        case Field.TYPE_ENUM:
            return choose.choice([*(v.number for v in field.enum_type.values), 77])
        case Field.TYPE_INT32 | Field.TYPE_SFIXED32:
            return choose.choice([n for n in NUMBERS if -(2**31) <= n < 2**31])
        case Field.TYPE_UINT32:
            return choose.choice([n for n in NUMBERS if 0 <= n < 2**32])
        case Field.TYPE_UINT64:
            return choose.choice([n for n in NUMBERS if n >= 0])
        case _:
            return choose.choice(NUMBERS)


def fill(message: Message, choose: random.Random, ids: list[str], depth: int = 0) -> None:
    for field in message.DESCRIPTOR.fields:
        if choose.random() < 0.4 or depth > 5:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(choose.randrange(3)):
                getattr(message, field.name)[choose.choice(WORDS)] = choose.choice(WORDS)
        elif field.is_repeated:
            for _ in range(choose.randrange(3)):
                if field.message_type is not None:
                    fill(getattr(message, field.name).add(), choose, ids, depth + 1)
                else:
                    getattr(message, field.name).append(scalar(field, choose))
        elif field.message_type is not None:
            fill(getattr(message, field.name), choose, ids, depth + 1)
        elif field.name in IDS and field.type == Field.TYPE_STRING and choose.random() < 0.7:
            setattr(message, field.name, choose.choice(ids))
        else:
            setattr(message, field.name, scalar(field, choose))


METHODS = sorted(
    m.name
    for s in cri.DESCRIPTOR.services_by_name.values()
    for m in s.methods
    if m.name != "GetContainerEvents"
)


@pytest.mark.parametrize("name", METHODS)
def test_no_message_is_a_defect(node: Node, name: str) -> None:
    kubelet: Kubelet = node.kubelet
    choose = random.Random(name)
    service = next(s for s in cri.DESCRIPTOR.services_by_name.values() if name in s.methods_by_name)
    kind = GetMessageClass(service.methods_by_name[name].input_type)
    pod = node.run_pod()
    container = node.create(pod)
    before = len(node.house.log.read_text())
    for _ in range(ROUNDS):
        request = kind()
        fill(request, choose, [pod, container, "", "0123"])
        restrain(request)
        try:
            getattr(kubelet, name)(request, within=30)
        except GRPCError as error:
            assert error.status not in (Status.INTERNAL, Status.UNKNOWN) or "Errno" not in str(
                error.message
            ), error
            assert "internal error" not in (error.message or ""), (request, error.message)
    assert "defect" not in node.house.log.read_text()[before:]
    for found in kubelet.ListPodSandbox().items:
        kubelet.RemovePodSandbox(pod_sandbox_id=found.id)


def restrain(request: Message) -> None:
    """What would reach out of the test: files of the host, registries that are not there."""
    config = getattr(request, "config", None)
    if isinstance(config, cri.PodSandboxConfig):
        config.linux.sysctls.clear()
        if config.log_directory.startswith("/"):
            config.log_directory = ""
        config.linux.cgroup_parent = ""
    if isinstance(request, cri.PullImageRequest):
        request.image.image = "127.0.0.1:1/" + request.image.image
    if isinstance(request, cri.RemoveImageRequest) and request.image.image == "nagaya/busybox":
        request.image.image = ""
    if isinstance(request, cri.StopContainerRequest | cri.ExecSyncRequest):
        request.timeout = min(request.timeout, 1)
