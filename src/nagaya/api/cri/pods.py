"""Pods: run, stop, remove, list, status."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

import msgspec

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.containers import container_status
from nagaya.api.cri.context import Context, Lister, Unary
from nagaya.api.cri.wire import fill, struct
from nagaya.engine.pods_model import Pod, PodConfig


async def run(context: Context, request: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
    """Make a pod."""
    config = struct(request.config, PodConfig, "config")
    return cri.RunPodSandboxResponse(
        pod_sandbox_id=await context.pods.run_pod(config, request.runtime_handler)
    )


async def stop(context: Context, request: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
    """Stop a pod."""
    await context.pods.stop_pod(request.pod_sandbox_id)
    return cri.StopPodSandboxResponse()


async def remove(context: Context, request: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
    """Remove a pod."""
    await context.pods.remove_pod(request.pod_sandbox_id)
    return cri.RemovePodSandboxResponse()


def _state(pod: Pod) -> cri.PodSandboxState:
    return cri.SANDBOX_READY if pod.ready else cri.SANDBOX_NOTREADY


def selected(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Are all the wanted labels there?"""
    return all(labels.get(key) == value for key, value in wanted.items())


async def listed(
    context: Context, request: cri.ListPodSandboxRequest | cri.StreamPodSandboxesRequest
) -> Sequence[cri.PodSandbox]:
    """The pods that a filter lets through."""
    wanted = request.filter
    found = []
    for pod in context.pods.pods():
        if wanted.id and not pod.id.startswith(wanted.id):
            continue
        if wanted.HasField("state") and wanted.state.state != _state(pod):
            continue
        if not selected(wanted.label_selector, pod.config.labels):
            continue
        found.append(
            cri.PodSandbox(
                id=pod.id,
                metadata=fill(cri.PodSandboxMetadata(), pod.config.metadata),
                state=_state(pod),
                created_at=pod.created,
                labels=pod.config.labels,
                annotations=pod.config.annotations,
                runtime_handler=pod.runtime_handler,
            )
        )
    return found


async def list_pods(context: Context, request: cri.ListPodSandboxRequest) -> cri.ListPodSandboxResponse:
    """The pods that a filter lets through."""
    return cri.ListPodSandboxResponse(items=await listed(context, request))


def pod_status(pod: Pod) -> cri.PodSandboxStatus:
    """A pod as its status has it."""
    addresses = pod.addresses
    return cri.PodSandboxStatus(
        id=pod.id,
        metadata=fill(cri.PodSandboxMetadata(), pod.config.metadata),
        state=_state(pod),
        created_at=pod.created,
        network=cri.PodSandboxNetworkStatus(
            ip=addresses[0] if addresses else "",
            additional_ips=[cri.PodIP(ip=address) for address in addresses[1:]],
        ),
        linux=cri.LinuxPodSandboxStatus(
            namespaces=cri.Namespace(options=fill(cri.NamespaceOption(), pod.config.namespaces))
        ),
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.runtime_handler,
    )


async def status(context: Context, request: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse:
    """One pod, with its containers."""
    pod = context.pods.pod(request.pod_sandbox_id)
    reply = cri.PodSandboxStatusResponse(
        status=pod_status(pod),
        containers_statuses=[container_status(c) for c in context.pods.containers(pod.id)],
        timestamp=time.time_ns(),
    )
    if request.verbose:
        reply.info["info"] = json.dumps(
            {
                "sandboxID": pod.id,
                "pins": context.pods.pins(pod),
                "network": "cni"
                if pod.cni
                else "bridge"
                if pod.config.namespaces.network == "POD"
                else "host",
                "cniResult": json.loads(pod.cni_result or b"null"),
                "config": msgspec.to_builtins(pod.config),
            }
        )
    return reply


UNARY: dict[str, Unary] = {
    "RunPodSandbox": run,
    "StopPodSandbox": stop,
    "RemovePodSandbox": remove,
    "ListPodSandbox": list_pods,
    "PodSandboxStatus": status,
}
LISTERS: dict[str, Lister] = {"StreamPodSandboxes": listed}
