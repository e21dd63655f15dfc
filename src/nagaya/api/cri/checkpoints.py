"""Checkpoints: of a container, of containers of a pod."""

from __future__ import annotations

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Unary, time_left
from nagaya.api.cri.wire import struct
from nagaya.engine.pods_model import PodConfig, PodContainerConfig
from nagaya.errors import InvalidArgument


async def container(
    context: Context, request: cri.CheckpointContainerRequest
) -> cri.CheckpointContainerResponse:
    """An archive of one that goes on."""
    await context.pods.checkpoint(request.container_id, request.location, request.timeout)
    return cri.CheckpointContainerResponse()


async def pod(context: Context, request: cri.CheckpointPodRequest) -> cri.CheckpointPodResponse:
    """Archives of containers that go on."""
    for name in request.options:
        raise InvalidArgument(f"there is no option {name}", subject="options")
    await context.pods.checkpoint_pod(
        request.pod_sandbox_id, request.container_ids, request.output_path, time_left.get()
    )
    return cri.CheckpointPodResponse()


async def restore(context: Context, request: cri.RestorePodRequest) -> cri.RestorePodResponse:
    """A pod of archives; its containers go on when they are started."""
    for name in request.options:
        raise InvalidArgument(f"there is no option {name}", subject="options")
    config = struct(request.config, PodConfig, "config")
    containers = [
        struct(one, PodContainerConfig, f"container_configs[{index}]")
        for index, one in enumerate(request.container_configs)
    ]
    pod_id, made = await context.pods.restore_pod(
        request.checkpoint_path, config, request.runtime_handler, containers
    )
    restored = [cri.RestoredContainer(name=name, container_id=one) for name, one in made]
    return cri.RestorePodResponse(pod_sandbox_id=pod_id, restored_containers=restored)


UNARY: dict[str, Unary] = {"CheckpointContainer": container, "CheckpointPod": pod, "RestorePod": restore}
