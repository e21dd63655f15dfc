"""`nagaya info`: facts about the daemon and its machine."""

from __future__ import annotations

from nagaya.cli.flags import Flag
from nagaya.cli.output import human_bytes
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS]"
SUMMARY = "Show facts about the daemon"
FLAGS = (Flag("format", "json, or a Go template", short="f", kind="text"),)
ARGS = (0, 0)

_LINES = (
    ("Containers", "Containers"),
    ("ContainersRunning", " Running"),
    ("ContainersPaused", " Paused"),
    ("ContainersStopped", " Stopped"),
    ("Images", "Images"),
    ("ServerVersion", "Server Version"),
    ("Driver", "Storage Driver"),
    ("LoggingDriver", "Logging Driver"),
    ("CgroupDriver", "Cgroup Driver"),
    ("CgroupVersion", "Cgroup Version"),
    ("DefaultRuntime", "Default Runtime"),
    ("KernelVersion", "Kernel Version"),
    ("OperatingSystem", "Operating System"),
    ("Architecture", "Architecture"),
    ("NCPU", "CPUs"),
    ("MemTotal", "Total Memory"),
    ("Name", "Name"),
    ("ID", "ID"),
    ("DockerRootDir", "Root Dir"),
)


def run(given: Given, client: Client) -> int:
    """Print the facts."""
    facts = client.call("GET", "/info")
    if given["format"] == "json":
        print(json.dumps(facts))
        return 0
    if given["format"]:
        from nagaya.cli.template import Template

        print(Template(given["format"]).render(facts))
        return 0
    for key, title in _LINES:
        if facts.get(key) not in (None, ""):
            print(f"{title}: {human_bytes(facts[key]) if key == 'MemTotal' else facts[key]}")
    if facts.get("Runtimes"):
        print("Runtimes: " + " ".join(sorted(facts["Runtimes"])))
    if facts.get("SecurityOptions"):
        print("Security Options: " + " ".join(facts["SecurityOptions"]))
    for warning in facts.get("Warnings") or ():
        print(warning)
    return 0
