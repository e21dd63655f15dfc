"""`nagaya system check`: do the daemon's books and the host agree? With --repair they are made to."""

from __future__ import annotations

from nagaya.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Compare what the daemon knows with what the host has"
FLAGS = (Flag("repair", "Mend what can be mended; what lives is never touched"),)
ARGS = (0, 0)


def run(given: Given, client: Client) -> int:
    """Print one line a difference; 1 when there is one that is not mended."""
    method = "POST" if given["repair"] else "GET"
    found = client.call(method, "/nagaya/check")["Findings"]
    left = 0
    for item in found:
        line = f"{item['Kind']}: {item['Subject']}: {item['Problem']}"
        if item["Repaired"]:
            line += " (mended)"
        elif item["Note"]:
            line += f" (not mended: {item['Note']})"
        elif given["repair"]:
            line += " (left alone)"
        print(line)
        left += not item["Repaired"]
    if not found:
        print("ledger and host agree")
    return 1 if left else 0
