"""The built-in runtime's requests."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nagaya.engine.keeper import BuilderDied
from nagaya.engine.runtimes import BuiltIn
from nagaya.engine.world import World
from nagaya.errors import FailedPrecondition, NagayaError, NotFound


def _delete(*outcomes: NagayaError | None) -> int:
    """Ask for a removal that ends so, each time it is asked; how often it was."""
    asked: list[dict[str, Any]] = []

    async def call(request: dict[str, Any]) -> None:
        asked.append(request)
        outcome = outcomes[len(asked) - 1]
        if outcome is not None:
            raise outcome

    settings = SimpleNamespace(runtime_root=lambda: "/run/x", cgroup_driver="cgroupfs")
    world = SimpleNamespace(settings=settings, supervisor=SimpleNamespace(call=call))
    asyncio.run(BuiltIn(cast("World", world)).delete("c"))
    assert all(r["op"] == "delete" and r["id"] == "c" and r["force"] for r in asked)
    return len(asked)


def test_what_a_killed_builder_left_is_removed_by_the_next() -> None:
    died = BuilderDied("the builder died without an answer", step="delete")
    assert _delete(None) == 1
    assert _delete(died, None) == 2
    assert _delete(died, died, NotFound("gone", subject="c")) == 3
    with pytest.raises(BuilderDied):
        _delete(died, died, died)
    with pytest.raises(FailedPrecondition):
        _delete(FailedPrecondition("no", subject="c"))
