"""`plan`: the steps that would make a container of a bundle; nothing is done."""

from __future__ import annotations

from nagaya.linux import os
from nagaya.linux.json import dumps_indented
from nagaya.oci.runtime import validate
from nagaya.runtime import plan
from nagaya.runtime.arguments import FLAG, TEXT, Option
from nagaya.runtime.verbs import launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.runtime.command import Settings

USAGE = "[command options]"
ARITY = (0, 0)
OPTIONS = [
    Option("bundle b", TEXT, "path to the root of the bundle directory, defaults to the current directory"),
    Option("format f", TEXT, "select one of: table or json", "table"),
    Option("no-pivot", FLAG, "as for create"),
    Option("no-new-keyring", FLAG, "as for create"),
]


def main(_settings: Settings, options: dict[str, Any], _positional: list[str]) -> int:
    """Print them in order."""
    bundle, spec = launch.bundle_of(options)
    validate(spec)
    process = spec.get("process") or {}
    job = plan.plan_container(
        spec,
        bundle,
        console=plan.console_size(process) if process.get("terminal") else None,
        no_pivot=options["no-pivot"],
        no_new_keyring=options["no-new-keyring"],
    )
    rows = steps(job)
    if options["format"] == "json":
        text = dumps_indented([{"step": name, "detail": detail} for name, detail in rows]) + "\n"
    else:
        width = max(len(name) for name, _ in rows)
        text = "".join(f"{n:>3}  {name:<{width}}  {d}".rstrip() + "\n" for n, (name, d) in enumerate(rows, 1))
    os.write(1, text.encode())
    return 0


def steps(job: plan.Plan) -> list[tuple[str, str]]:
    """(name, detail) of all that will happen, the clones too."""
    rows = [(step.name, step.detail) for step in job.stage_joins]
    made = [kind for kind, flag in plan.NAMESPACES.items() if job.clone & flag]
    rows.append(("clone", "new namespaces: " + " ".join(made) if made else "no new namespace"))
    rows += [(step.name, step.detail) for step in job.steps]
    if job.late:
        rows.append(("clone into pid namespace", "after everything is dropped"))
    rows.append(("exec", " ".join(job.process.get("args") or [])))
    return rows
