"""The seccomp agent: who answers the system calls that SCMP_ACT_NOTIFY stops.

It listens at linux.seccomp.listenerPath, and gets the ContainerProcessState of the runtime-spec
(config-linux.md) with the filter's listener as SCM_RIGHTS.
"""

from __future__ import annotations

import _socket
from _struct import pack

from nagaya.errors import KernelError
from nagaya.linux import os
from nagaya.linux.json import dumps
from nagaya.oci.runtime import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def register(path: str, metadata: str, listener: int, pid: int, state: dict[str, Any]) -> None:
    """Hand the listener of process pid to the agent. Raises KernelError when there is none."""
    document = {
        "ociVersion": VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": metadata,
        "state": state,
    }
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        end.connect(path)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("=i", listener))]
        end.sendmsg([dumps(document).encode()], rights, _socket.MSG_NOSIGNAL)
    except OSError as error:
        raise KernelError(
            "failed to connect with seccomp agent specified in the seccomp profile: "
            f"dial unix {path}: {os.strerror(error.errno or 0).lower()}",
            subject="linux.seccomp.listenerPath",
            errno=error.errno or 0,
        ) from None
    finally:
        end.close()
