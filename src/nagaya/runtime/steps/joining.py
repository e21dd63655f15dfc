"""What carries out the steps of a plan that joins a container: no more is loaded for most execs."""

from __future__ import annotations

from nagaya.runtime import plan
from nagaya.runtime.steps import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nagaya.runtime.steps.context import Context

PERFORM: dict[type[plan.Step], Callable[[Context, Any], None]] = {
    plan.Enter: namespaces.enter_container,
    plan.Keyring: namespaces.keyring,
}
