"""The words that the API knows: fields of bodies, variables of queries."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from nagaya.api.docker.types import structs

API = Path(structs.__file__).parents[1]

BODIES = [
    kind
    for kind in vars(structs).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
]
# what could reach the host's own files, devices and limits is left to tests that know what they do
HARMFUL = frozenset(
    (
        "Binds",
        "Source",
        "Devices",
        "PathOnHost",
        "CgroupParent",
        "Privileged",
        "CreateMountpoint",
        "DriverOpts",
    )
)
FIELDS = sorted({name for kind in BODIES for name in kind.__struct_fields__} - HARMFUL)
VARIABLES = sorted(
    {
        name
        for path in API.rglob("*.py")
        for name in re.findall(r'request\.(?:get|flag|integer)\("([A-Za-z-]+)"', path.read_text())
    }
    | {"filters", "type", "odd"} - {"fromSrc"}
)
