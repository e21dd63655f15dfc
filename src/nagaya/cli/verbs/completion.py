"""`nagaya completion`: the script that completes nagaya's words in a shell."""

from __future__ import annotations

from nagaya.cli.completing import SCRIPTS
from nagaya.cli.flags import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "bash|zsh|fish"
SUMMARY = "Print the script that completes commands, flags and names in a shell"
FLAGS = ()
ARGS = (1, 1)


def run(given: Given, client: Client) -> int:
    """Print it."""
    if given.args[0] not in SCRIPTS:
        raise UsageError(f"no completion for {given.args[0]}: use one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[given.args[0]], end="")
    return 0
