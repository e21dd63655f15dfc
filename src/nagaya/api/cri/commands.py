"""Commands and streams in containers: ExecSync, and the addresses where Exec, Attach and PortForward wait."""

from __future__ import annotations

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Unary


async def exec_sync(context: Context, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
    """Run a command to its end."""
    found = await context.pods.run_command(request.container_id, request.cmd, request.timeout)
    return cri.ExecSyncResponse(stdout=found.stdout, stderr=found.stderr, exit_code=found.exit_code)


UNARY: dict[str, Unary] = {"ExecSync": exec_sync}
