"""Steps that run hooks, in the parent or in the namespaces of the container."""

from __future__ import annotations

from nagaya.runtime import channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.runtime import plan
    from nagaya.runtime.steps.context import Context


def host_hooks(context: Context, _step: plan.HostHooks) -> None:
    """The parent runs them: they belong to the host's namespaces."""
    context.ask(channel.HOOKS)


def container_hooks(context: Context, step: plan.Hooks) -> None:
    """createContainer: in the namespaces of the container, in its root directory."""
    from nagaya.runtime import hooks  # few have any: loaded where there are

    hooks.run(step.kind, step.hooks, {**context.state, "status": step.status}, directory=context.rootfd)
