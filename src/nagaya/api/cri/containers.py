"""Containers of pods: create, start, stop, remove, list, status, update, logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Lister, Unary
from nagaya.api.cri.wire import fill, struct
from nagaya.engine.model import Container
from nagaya.engine.pods_containers import failed_to_start
from nagaya.engine.pods_model import LinuxResources, PodContainerConfig, PodMember
from nagaya.engine.pods_mounts import known
from nagaya.engine.pods_spec import member_of
from nagaya.errors import InvalidArgument

_START_ERROR = 128


async def create(context: Context, request: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
    """Make a container."""
    config = struct(request.config, PodContainerConfig, "config")
    return cri.CreateContainerResponse(container_id=await context.pods.create(request.pod_sandbox_id, config))


async def start(context: Context, request: cri.StartContainerRequest) -> cri.StartContainerResponse:
    """Start it."""
    await context.pods.start(request.container_id)
    return cri.StartContainerResponse()


async def stop(context: Context, request: cri.StopContainerRequest) -> cri.StopContainerResponse:
    """Stop it."""
    await context.pods.stop(request.container_id, request.timeout)
    return cri.StopContainerResponse()


async def remove(context: Context, request: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
    """Remove it."""
    await context.pods.remove(request.container_id)
    return cri.RemoveContainerResponse()


def state_of(container: Container) -> cri.ContainerState:
    """The state in the interface's words."""
    match container.state:
        case "created":
            return cri.CONTAINER_EXITED if failed_to_start(container) else cri.CONTAINER_CREATED
        case "running" | "paused":
            return cri.CONTAINER_RUNNING
        case "exited" | "removing":
            return cri.CONTAINER_EXITED
        case _:
            return cri.CONTAINER_UNKNOWN


def _image(member: PodMember) -> cri.ImageSpec:
    spec = fill(cri.ImageSpec(), member.config.image)
    spec.image = member.image[0] or spec.image
    return spec


async def listed(
    context: Context, request: cri.ListContainersRequest | cri.StreamContainersRequest
) -> Sequence[cri.Container]:
    """The containers that a filter lets through."""
    wanted = request.filter
    found = []
    for container in context.pods.containers():
        member = member_of(container)
        if not chosen(container, member, wanted.id, wanted.pod_sandbox_id, wanted.label_selector):
            continue
        if wanted.HasField("state") and wanted.state.state != state_of(container):
            continue
        found.append(
            cri.Container(
                id=container.id,
                pod_sandbox_id=member.pod_id,
                metadata=fill(cri.ContainerMetadata(), member.config.metadata),
                image=_image(member),
                image_ref=member.image[1] or container.image_digest,
                image_id=container.image_digest,
                state=state_of(container),
                created_at=container.created,
                labels=member.config.labels,
                annotations=member.config.annotations,
            )
        )
    return found


def chosen(
    container: Container, member: PodMember, container_id: str, pod_id: str, labels: Mapping[str, str]
) -> bool:
    """Does a filter let it through?"""
    if container_id and not container.id.startswith(container_id):
        return False
    if pod_id and not member.pod_id.startswith(pod_id):
        return False
    return all(member.config.labels.get(key) == value for key, value in labels.items())


async def list_containers(context: Context, request: cri.ListContainersRequest) -> cri.ListContainersResponse:
    """The containers that a filter lets through."""
    return cri.ListContainersResponse(containers=await listed(context, request))


def container_status(container: Container) -> cri.ContainerStatus:
    """A container as its status has it."""
    member = member_of(container)
    uid, gid, groups = member.user
    status = cri.ContainerStatus(
        id=container.id,
        metadata=fill(cri.ContainerMetadata(), member.config.metadata),
        state=state_of(container),
        created_at=container.created,
        started_at=container.started,
        finished_at=container.finished,
        image=_image(member),
        image_ref=member.image[1] or container.image_digest,
        image_id=container.image_digest,
        labels=member.config.labels,
        annotations=member.config.annotations,
        mounts=[fill(cri.Mount(), mount) for mount in known(member.config.mounts, container.mount_points)],
        log_path=member.log_path,
        user=cri.ContainerUser(linux=cri.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups)),
        resources=cri.ContainerResources(
            linux=fill(cri.LinuxContainerResources(), member.config.linux.resources)
        ),
        stop_signal=_stop_signal(container),
    )
    if failed_to_start(container):
        status.reason, status.message = "StartError", container.error
        status.exit_code = container.exit_code or _START_ERROR
        status.finished_at = status.started_at = container.created
    elif status.state == cri.CONTAINER_EXITED:
        status.exit_code = container.exit_code
        status.message = container.error
        killed = "OOMKilled" if container.oom_killed else "Error"
        status.reason = killed if container.exit_code or container.oom_killed else "Completed"
    return status


def _stop_signal(container: Container) -> Any:
    """Which signal stops it, as the interface numbers them."""
    text = (container.stop_signal or "TERM").upper().removeprefix("SIG")
    name = f"SIGNAL_SIG{text.replace('+', 'PLUS').replace('-', 'MINUS')}"
    known = {value.name: value.number for value in cri.Signal.DESCRIPTOR.values}
    return known.get(name, cri.SIGNAL_SIGTERM)


async def status(context: Context, request: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
    """One container."""
    container = context.pods.container(request.container_id)
    reply = cri.ContainerStatusResponse(status=container_status(container))
    if request.verbose:
        member = member_of(container)
        reply.info["info"] = json.dumps(
            {
                "sandboxID": member.pod_id,
                "pid": container.pid,
                "runtime": container.config.runtime or "nagaya",
                "config": msgspec.to_builtins(member.config),
                "runtimeSpec": await context.pods.spec_of(container),
            }
        )
    return reply


async def update(
    context: Context, request: cri.UpdateContainerResourcesRequest
) -> cri.UpdateContainerResourcesResponse:
    """Change limits."""
    if not request.HasField("linux"):
        raise InvalidArgument("linux is empty", subject="linux")
    limits = struct(request.linux, LinuxResources, "linux")
    await context.pods.update(request.container_id, limits)
    return cri.UpdateContainerResourcesResponse()


async def reopen_log(
    context: Context, request: cri.ReopenContainerLogRequest
) -> cri.ReopenContainerLogResponse:
    """The log was renamed."""
    await context.pods.reopen_log(request.container_id)
    return cri.ReopenContainerLogResponse()


UNARY: dict[str, Unary] = {
    "CreateContainer": create,
    "StartContainer": start,
    "StopContainer": stop,
    "RemoveContainer": remove,
    "ListContainers": list_containers,
    "ContainerStatus": status,
    "UpdateContainerResources": update,
    "ReopenContainerLog": reopen_log,
}
LISTERS: dict[str, Lister] = {"StreamContainers": listed}
