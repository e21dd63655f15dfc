"""How each RPC fails, in a table that knows them all; events under load; and callers that give up at every
moment."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from google.protobuf.message import Message
from grpclib import Status
from house import wait_for
from kubelet import Kubelet, Node, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root

BAD, GONE, STATE = Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.FAILED_PRECONDITION
UNKNOWN = "0123abcd"
NO_ID: dict[str, Any] = {}


class Things(NamedTuple):
    """One of each state: ids, which the table names in braces."""

    pod: str
    stopped: str
    created: str
    running: str
    exited: str


@pytest.fixture(scope="module")
def things(node: Node) -> Iterator[Things]:
    pod, stopped = node.run_pod(), node.run_pod()
    exited = node.start(pod, "true")
    node.ended(exited)
    node.kubelet.StopPodSandbox(pod_sandbox_id=stopped)
    yield Things(pod, stopped, node.create(pod), node.start(pod), exited)
    for made in (pod, stopped):
        node.kubelet.RemovePodSandbox(pod_sandbox_id=made)


def of(**fields: Any) -> dict[str, Any]:
    return fields


# RPC, fields of the request, status, a word of the message
CASES: list[tuple[str, dict[str, Any], Status, str]] = [
    ("Version", of(version="v9"), BAD, "version"),
    ("RunPodSandbox", of(), BAD, "config.metadata"),
    ("RunPodSandbox", of(config=cri.PodSandboxConfig(metadata={"name": "x"})), BAD, "uid"),
    ("PodSandboxStatus", NO_ID, BAD, "pod_sandbox_id"),
    ("PodSandboxStatus", of(pod_sandbox_id=UNKNOWN), GONE, "pod_sandbox_id"),
    ("CreateContainer", NO_ID, BAD, "pod_sandbox_id"),
    ("CreateContainer", of(pod_sandbox_id=UNKNOWN), GONE, "pod_sandbox_id"),
    ("CreateContainer", of(pod_sandbox_id="{stopped}"), STATE, "not ready"),
    ("CreateContainer", of(pod_sandbox_id="{pod}"), BAD, "config.metadata.name"),
    ("StartContainer", NO_ID, BAD, "container_id"),
    ("StartContainer", of(container_id=UNKNOWN), GONE, "container_id"),
    ("StartContainer", of(container_id="{exited}"), STATE, "exited"),
    ("ContainerStatus", NO_ID, BAD, "container_id"),
    ("ContainerStatus", of(container_id=UNKNOWN), GONE, "container_id"),
    ("UpdateContainerResources", of(container_id="{running}"), BAD, "linux"),
    ("UpdateContainerResources", of(container_id=UNKNOWN, linux={}), GONE, "container_id"),
    ("UpdateContainerResources", of(container_id="{exited}", linux={}), STATE, "has ended"),
    (
        "UpdateContainerResources",
        of(container_id="{running}", linux={"memory_limit_in_bytes": -9}),
        BAD,
        "memory_limit_in_bytes",
    ),
    ("ReopenContainerLog", NO_ID, BAD, "container_id"),
    ("ReopenContainerLog", of(container_id=UNKNOWN), GONE, "container_id"),
    ("ReopenContainerLog", of(container_id="{created}"), STATE, "not running"),
    ("ExecSync", NO_ID, BAD, "container_id"),
    ("ExecSync", of(container_id=UNKNOWN, cmd=["true"]), GONE, "container_id"),
    ("ExecSync", of(container_id="{created}", cmd=["true"]), STATE, "not running"),
    ("ExecSync", of(container_id="{exited}", cmd=["true"]), STATE, "not running"),
    ("ExecSync", of(container_id="{running}"), BAD, "cmd"),
    ("ExecSync", of(container_id="{running}", cmd=[""]), BAD, "cmd"),
    ("ExecSync", of(container_id="{running}", cmd=["true"], timeout=-1), BAD, "timeout"),
    ("ExecSync", of(container_id="{running}", cmd=["/no/such"]), Status.UNKNOWN, "/no/such"),
    (
        "ExecSync",
        of(container_id="{running}", cmd=["sleep", "9"], timeout=1),
        Status.DEADLINE_EXCEEDED,
        "longer",
    ),
    (
        "ExecSync",
        of(container_id="{running}", cmd=["head", "-c", "17m", "/dev/zero"]),
        Status.RESOURCE_EXHAUSTED,
        "larger",
    ),
    ("Exec", of(container_id=UNKNOWN, cmd=["sh"], stdout=True), GONE, "container_id"),
    ("Exec", of(container_id="{created}", cmd=["sh"], stdout=True), STATE, "not running"),
    ("Exec", of(container_id="{running}", cmd=["sh"]), BAD, "stdin"),
    ("Exec", of(container_id="{running}", stdout=True), BAD, "cmd"),
    ("Exec", of(container_id="{running}", cmd=["sh"], tty=True, stdout=True, stderr=True), BAD, "stderr"),
    ("Attach", of(container_id=UNKNOWN, stdout=True), GONE, "container_id"),
    ("Attach", of(container_id="{exited}", stdout=True), STATE, "not running"),
    ("Attach", of(container_id="{running}"), BAD, "stdin"),
    ("Attach", of(container_id="{running}", stdin=True), BAD, "without stdin"),
    ("Attach", of(container_id="{running}", stdout=True, tty=True), BAD, "terminal"),
    ("PortForward", of(pod_sandbox_id=UNKNOWN), GONE, "pod_sandbox_id"),
    ("PortForward", of(pod_sandbox_id="{stopped}"), STATE, "not ready"),
    ("PortForward", of(pod_sandbox_id="{pod}", port=[0]), BAD, "port"),
    ("ContainerStats", NO_ID, BAD, "container_id"),
    ("ContainerStats", of(container_id=UNKNOWN), GONE, "container_id"),
    ("PodSandboxStats", NO_ID, BAD, "pod_sandbox_id"),
    ("PodSandboxStats", of(pod_sandbox_id=UNKNOWN), GONE, "pod_sandbox_id"),
    ("UpdatePodSandboxResources", of(pod_sandbox_id=UNKNOWN), GONE, "pod_sandbox_id"),
    ("ImageStatus", of(), BAD, "image.image"),
    ("PullImage", of(), BAD, "image.image"),
    ("PullImage", of(image={"image": "a b"}), BAD, "invalid reference format"),
    ("PullImage", of(image={"image": "127.0.0.1:9/no/where:1"}), Status.UNAVAILABLE, "127.0.0.1:9"),
    (
        "PullImage",
        of(image={"image": "127.0.0.1:9/x:1"}, auth={"auth": "%%%"}),
        BAD,
        "auth.auth",
    ),
    ("RemoveImage", of(), BAD, "image.image"),
]
# what is not there has been stopped and removed
REPEATABLE = ("StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer")
# they only read, and whatever a filter says is an answer; or there is nothing to refuse
NEVER = (
    "Status RuntimeConfig UpdateRuntimeConfig ImageFsInfo ListPodSandbox ListContainers ListImages"
    " ListContainerStats ListPodSandboxStats ListMetricDescriptors ListPodSandboxMetrics StreamPodSandboxes"
    " StreamContainers StreamImages StreamContainerStats StreamPodSandboxStats StreamPodSandboxMetrics"
    " GetContainerEvents"
).split()
ELSEWHERE = ("CheckpointContainer", "CheckpointPod", "RestorePod")  # test_cri_checkpoints.py


@pytest.mark.parametrize(
    ("name", "fields", "status", "word"), CASES, ids=[f"{n}-{w}-{i}" for i, (n, _, _, w) in enumerate(CASES)]
)
def test_failure(
    node: Node, things: Things, name: str, fields: dict[str, Any], status: Status, word: str
) -> None:
    filled = {
        key: value.format(**things._asdict()) if isinstance(value, str) else value
        for key, value in fields.items()
    }
    refused(lambda: getattr(node.kubelet, name)(**filled), status, word)
    assert node.status(things.running).state == cri.CONTAINER_RUNNING


@pytest.mark.parametrize("name", REPEATABLE)
def test_what_is_not_there_is_stopped_and_removed(node: Node, name: str) -> None:
    field = "pod_sandbox_id" if "Pod" in name else "container_id"
    for value in ("", UNKNOWN):
        getattr(node.kubelet, name)(**{field: value})


def test_the_table_knows_every_rpc() -> None:
    every = {m.name for service in cri.DESCRIPTOR.services_by_name.values() for m in service.methods}
    assert {name for name, *_ in CASES} | {*REPEATABLE, *NEVER, *ELSEWHERE} == every
    assert len(every) == 43


@pytest.mark.parametrize("name", [name for name in NEVER if name.startswith(("List", "Stream"))])
def test_lists_of_nothing(node: Node, things: Things, name: str) -> None:
    kind = type(node.kubelet.method(name).request_type())
    request = kind()
    if "filter" in kind.DESCRIPTOR.fields_by_name and "Image" not in name:
        request.filter.id = UNKNOWN
        found = getattr(node.kubelet, name)(request)
        for message in found if isinstance(found, list) else [found]:
            assert not [value for _, value in message.ListFields()]


# events


def listen(kubelet: Kubelet, seen: list[cri.ContainerEventResponse], ready: threading.Event) -> Any:
    watch = kubelet.method("GetContainerEvents")

    async def work() -> None:
        async with watch.open() as stream:
            await stream.send_message(cri.GetEventsRequest(), end=True)
            await stream.recv_initial_metadata()
            ready.set()
            async for event in stream:
                seen.append(event)

    return kubelet.begin(work())


def deleted(seen: list[cri.ContainerEventResponse], count: int) -> bool:
    return Counter(e.container_event_type for e in seen)[cri.CONTAINER_DELETED_EVENT] >= count


def test_events_under_load_are_whole_and_in_order(node: Node) -> None:
    """Many pods at once, and three who watch."""
    watchers: list[tuple[list[cri.ContainerEventResponse], Any]] = []
    for _ in range(3):
        seen: list[cri.ContainerEventResponse] = []
        ready = threading.Event()
        task = listen(node.kubelet, seen, ready)
        assert ready.wait(10)
        watchers.append((seen, task))

    def life(_: int) -> tuple[str, str]:
        pod = node.run_pod()
        made = node.start(pod, "true")
        node.ended(made)
        node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
        return pod, made

    with ThreadPoolExecutor(6) as pool:
        lives = list(pool.map(life, range(12)))
    whole = [
        cri.CONTAINER_CREATED_EVENT,
        cri.CONTAINER_STARTED_EVENT,
        cri.CONTAINER_STOPPED_EVENT,
        cri.CONTAINER_DELETED_EVENT,
    ]
    for seen, task in watchers:
        wait_for(functools.partial(deleted, seen, 24), 20, "the last events")
        for pod, made in lives:
            assert [e.container_event_type for e in seen if e.container_id == made] == whole
            assert [e.container_event_type for e in seen if e.container_id == pod] == whole[1:]
        task.cancel()


# callers that give up


def impatient(node: Node, name: str, request: Message, patience: float) -> bool:
    """Call, and give up after so many seconds; was there an answer before?"""
    method = node.kubelet.method(name)

    async def work() -> bool:
        try:
            await asyncio.wait_for(method(request), patience)
        except TimeoutError:
            return False
        return True

    return bool(node.kubelet.wait(work()))


def moments(step: float) -> Iterator[float]:
    """0, one step, two, three, then in growing ones: most of what an operation does is at its beginning."""
    yield from itertools.accumulate(itertools.count(0), lambda now, n: now + step * (1 + n // 6), initial=0.0)


def test_a_caller_may_give_up_at_every_moment(node: Node) -> None:
    """At each moment of each operation; then the same request again is answered as if nobody had gone, and
    there is one of everything, and in the end nothing."""
    step = 0.0015
    unfinished = dict.fromkeys(
        (
            "RunPodSandbox",
            "CreateContainer",
            "StartContainer",
            "StopContainer",
            "RemoveContainer",
            "StopPodSandbox",
            "RemovePodSandbox",
        ),
        True,
    )

    def try_twice(name: str, patience: float, **fields: Any) -> Any:
        call: Callable[..., Any] = getattr(node.kubelet, name)
        request = node.kubelet.method(name).request_type(**fields)
        if unfinished[name] and impatient(node, name, request, patience):
            unfinished[name] = False  # every moment of it was tried
        return call(request)

    before = {p.id for p in node.kubelet.ListPodSandbox().items}
    for patience in moments(step):
        config, inside = node.pod_config(), node.container_config("sleep", "600")
        pod = try_twice("RunPodSandbox", patience, config=config).pod_sandbox_id
        same = [p.id for p in node.kubelet.ListPodSandbox().items if p.metadata == config.metadata]
        assert same == [pod]
        fields = {"pod_sandbox_id": pod, "config": inside, "sandbox_config": config}
        made = try_twice("CreateContainer", patience, **fields).container_id
        wanted = cri.ContainerFilter(pod_sandbox_id=pod)
        assert [c.id for c in node.kubelet.ListContainers(filter=wanted).containers] == [made]
        try_twice("StartContainer", patience, container_id=made)
        assert node.status(made).state == cri.CONTAINER_RUNNING
        try_twice("StopContainer", patience, container_id=made)
        assert node.status(made).state == cri.CONTAINER_EXITED
        try_twice("RemoveContainer", patience, container_id=made)
        assert not node.kubelet.ListContainers(filter=wanted).containers
        try_twice("StopPodSandbox", patience, pod_sandbox_id=pod)
        try_twice("RemovePodSandbox", patience, pod_sandbox_id=pod)
        assert {p.id for p in node.kubelet.ListPodSandbox().items} == before
        if not any(unfinished.values()) or patience > 0.5:  # a busy machine: enough moments
            break
    assert len(list((node.house.run_dir / "pods").iterdir())) == len(before)
