"""Where clients of Exec, Attach and PortForward connect."""

from __future__ import annotations

from nagaya.engine.engine import Engine


class StreamingServer:
    """A server on loopback."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def start(self) -> None:
        """Listen."""

    async def close(self) -> None:
        """End."""
