"""Shared by all tests: root tests say so and are skipped, visibly, without root."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# how fast a machine with other work generates input says nothing of what is tested
settings.register_profile("nagaya", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("nagaya")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # one of several workers begins with what takes longest and is nothing but waiting for it
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
