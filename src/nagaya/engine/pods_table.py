"""All pods in memory."""

from __future__ import annotations

from collections.abc import Iterator

from nagaya.engine.pods_model import Pod
from nagaya.errors import InvalidArgument, NotFound


class PodTable:
    """All pods in memory. Lives on the event loop."""

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}

    def __iter__(self) -> Iterator[Pod]:
        return iter(tuple(self._pods.values()))

    def add(self, pod: Pod) -> None:
        """Show a pod."""
        self._pods[pod.id] = pod

    def discard(self, pod_id: str) -> None:
        """Forget it."""
        self._pods.pop(pod_id, None)

    def get(self, pod_id: str) -> Pod | None:
        """The pod of an id, or of an unambiguous beginning of one."""
        found = self._pods.get(pod_id)
        if found is None and pod_id:
            near = [pod for i, pod in self._pods.items() if i.startswith(pod_id)]
            found = near[0] if len(near) == 1 else None
        return found

    def find(self, pod_id: str) -> Pod:
        """The same. Raises NotFound, InvalidArgument for an empty id."""
        if not pod_id:
            raise InvalidArgument("pod_sandbox_id is empty", subject="pod_sandbox_id")
        found = self.get(pod_id)
        if found is None:
            raise NotFound(f"no pod sandbox {pod_id}", subject="pod_sandbox_id")
        return found

    def living(self) -> set[str]:
        """The ids of those whose namespaces are in use."""
        return {pod.id for pod in self._pods.values() if pod.ready or pod.connected}
