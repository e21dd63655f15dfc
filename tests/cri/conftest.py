"""A daemon that serves the Container Runtime Interface, one for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubelet import Kubelet, Node


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as made:
        yield made


@pytest.fixture
def kubelet(node: Node) -> Kubelet:
    return node.kubelet


@pytest.fixture
def pod(node: Node) -> Iterator[str]:
    """A pod that is removed with all that is in it."""
    made = node.run_pod()
    yield made
    node.kubelet.RemovePodSandbox(pod_sandbox_id=made)
