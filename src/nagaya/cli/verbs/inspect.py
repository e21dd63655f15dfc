"""`nagaya inspect`: all that is known of an object, as JSON or by a template."""

from __future__ import annotations

from nagaya.cli import life
from nagaya.cli.flags import Flag, UsageError
from nagaya.cli.http import ApiError, quote
from nagaya.cli.output import note
from nagaya.errors import NagayaError, NotFound
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given
    from nagaya.cli.http import Client

USAGE = "[OPTIONS] NAME|ID [NAME|ID...]"
SUMMARY = "Show all that is known of containers, images and other objects"
FLAGS = (
    Flag("format", "json, or a Go template", short="f", kind="text"),
    Flag("size", "Show sizes of a container's files", short="s"),
    Flag("type", "Look only for: container, image, network, volume", kind="text"),
)
ARGS = (1, None)

_KINDS = ("container", "image", "network", "volume")


def run(given: Given, client: Client) -> int:
    """Print what was found; 1 when something was not."""
    if given["type"] not in ("", *_KINDS):
        kinds = ", ".join(f'"{kind}"' for kind in _KINDS)
        raise UsageError(f'unknown type: "{given["type"]}": must be one of {kinds}')
    template = None
    if given["format"] not in ("", "json"):
        from nagaya.cli.template import Template

        template = Template(given["format"])
    found, errors = [], []
    for name in given.args:
        try:
            item = find(client, name, given["type"], size=given["size"])
            if template is not None:
                print(template.render(item))
            elif given["format"] == "json":
                print(json.dumps(item))
            else:
                found.append(item)
        except NagayaError as error:
            errors.append(error)
    if not given["format"]:
        print(json.dumps_indented(found, "    "))
    for missing in errors:
        note(str(missing))
    return 1 if errors else 0


def find(client: Client, name: str, kind: str, *, size: bool) -> Any:
    """The first object of that name among the kinds, in docker's order. Raises NotFound."""
    for each in (kind,) if kind else _KINDS:
        path = f"{life.path(name)}/json" if each == "container" else f"/{each}s/{quote(name)}"
        path += "/json" if each == "image" else ""
        try:
            return client.call("GET", path, {"size": size and each == "container"})
        except ApiError as error:
            if kind or error.status not in (404, 501):
                raise
    raise NotFound(f"Error: No such object: {name}")
