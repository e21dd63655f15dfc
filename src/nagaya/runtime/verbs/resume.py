"""`resume`: let the processes of a paused container go on."""

from __future__ import annotations

from nagaya.runtime import lifecycle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.arguments import Option
    from nagaya.runtime.command import Settings

USAGE = "<container-id>"
ARITY = (1, 1)
OPTIONS: list[Option] = []


def main(settings: Settings, _options: dict[str, Any], positional: list[str]) -> int:
    """0 when it is done."""
    lifecycle.resume(settings.root, positional[0])
    return 0
