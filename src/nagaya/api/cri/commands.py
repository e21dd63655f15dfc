"""Commands and streams in containers: ExecSync, and the addresses where Exec, Attach and PortForward wait."""

from __future__ import annotations

from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Unary
from nagaya.api.cri.streaming import sessions
from nagaya.engine.model import AttachRequest, ExecConfig
from nagaya.errors import FailedPrecondition, InvalidArgument


async def exec_sync(context: Context, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
    """Run a command to its end."""
    found = await context.pods.run_command(request.container_id, request.cmd, request.timeout)
    return cri.ExecSyncResponse(stdout=found.stdout, stderr=found.stderr, exit_code=found.exit_code)


def _check_streams(request: cri.ExecRequest | cri.AttachRequest) -> None:
    if request.tty and request.stderr:
        raise InvalidArgument("a terminal has no stderr of its own", subject="stderr")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("one of stdin, stdout and stderr is needed", subject="stdout")


async def execute(context: Context, request: cri.ExecRequest) -> cri.ExecResponse:
    """An address for a command."""
    container = context.pods.running(request.container_id)
    if not request.cmd or not request.cmd[0]:
        raise InvalidArgument("cmd is empty", subject="cmd")
    _check_streams(request)
    streams = {"tty": request.tty, "stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
    config = ExecConfig(
        tuple(request.cmd),
        tty=request.tty,
        attach_stdin=request.stdin,
        attach_stdout=request.stdout,
        attach_stderr=request.stderr,
    )
    url = context.streaming.offer(
        "exec",
        sessions.upgrade_of_command(**streams),
        lambda channels: sessions.execute(context.pods, container, config, channels),
    )
    return cri.ExecResponse(url=url)


async def attach(context: Context, request: cri.AttachRequest) -> cri.AttachResponse:
    """An address for a container's own streams."""
    container = context.pods.running(request.container_id)
    _check_streams(request)
    if request.tty != container.config.tty:
        has = "a" if container.config.tty else "no"
        raise InvalidArgument(f"container {container.id} has {has} terminal", subject="tty")
    if request.stdin and not container.config.open_stdin:
        raise InvalidArgument(f"container {container.id} was made without stdin", subject="stdin")
    wanted = AttachRequest(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr)
    url = context.streaming.offer(
        "attach",
        sessions.upgrade_of_command(
            tty=request.tty, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
        ),
        lambda channels: sessions.attach(context.pods, container, wanted, channels),
    )
    return cri.AttachResponse(url=url)


async def port_forward(context: Context, request: cri.PortForwardRequest) -> cri.PortForwardResponse:
    """An address for connections into a pod."""
    pod = context.pods.pod(request.pod_sandbox_id)
    if not pod.ready:
        raise FailedPrecondition(f"pod sandbox {pod.id} is not ready", subject="pod_sandbox_id")
    ports = tuple(request.port)
    for port in ports:
        if not 0 < port < 65536:
            raise InvalidArgument(f"{port} is no port", subject="port")
    url = context.streaming.offer(
        "portforward",
        sessions.upgrade_of_ports(ports),
        lambda channels: sessions.forward(context.pods, pod, ports, channels),
    )
    return cri.PortForwardResponse(url=url)


UNARY: dict[str, Unary] = {
    "ExecSync": exec_sync,
    "Exec": execute,
    "Attach": attach,
    "PortForward": port_forward,
}
