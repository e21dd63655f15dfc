"""`state`: the state of one container as JSON."""

from __future__ import annotations

from nagaya.linux import os
from nagaya.linux.json import dumps_indented
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
    """Print it."""
    document = lifecycle.state(settings.root, positional[0])
    if not document["annotations"]:
        del document["annotations"]
    os.write(1, dumps_indented(document).encode())
    return 0
