"""Events of containers, as a kubelet that does not poll wants them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.containers import container_status
from nagaya.api.cri.context import Context, Watcher
from nagaya.api.cri.pods import pod_status
from nagaya.engine.events import POD, POD_CONTAINER
from nagaya.engine.pods_spec import member_of

_KINDS = {
    (POD_CONTAINER, "create"): cri.CONTAINER_CREATED_EVENT,
    (POD_CONTAINER, "start"): cri.CONTAINER_STARTED_EVENT,
    (POD_CONTAINER, "die"): cri.CONTAINER_STOPPED_EVENT,
    (POD_CONTAINER, "destroy"): cri.CONTAINER_DELETED_EVENT,
    (POD, "ready"): cri.CONTAINER_STARTED_EVENT,
    (POD, "stopped"): cri.CONTAINER_STOPPED_EVENT,
    (POD, "removed"): cri.CONTAINER_DELETED_EVENT,
}


async def watch(
    context: Context, request: cri.GetEventsRequest
) -> AsyncGenerator[cri.ContainerEventResponse, None]:
    """What happens to pods and containers from now on; a pod's own events carry its id."""
    async for event in context.pods.world.bus.subscribe():
        kind = _KINDS.get((event.type, event.action))
        if kind is None:
            continue
        reply = cri.ContainerEventResponse(
            container_id=event.id, container_event_type=kind, created_at=event.time_ns
        )
        container = context.pods.get(event.id)
        pod_id = (
            member_of(container).pod_id if container is not None else event.attributes.get("pod", event.id)
        )
        pod = context.pods.world.pods.get(pod_id)
        if pod is not None:
            reply.pod_sandbox_status.CopyFrom(pod_status(pod))
            reply.containers_statuses.extend(container_status(c) for c in context.pods.containers(pod.id))
        yield reply


WATCHERS: dict[str, Watcher] = {"GetContainerEvents": watch}
