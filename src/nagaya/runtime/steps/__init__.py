"""The steps of a plan, carried out in the container's first process.

Each module has functions `(context, step) -> None`; `making` and `joining` say which one serves which
class. Everything runs before the exec, most of it before the root changes: nothing may be imported
later than these modules (docs/design.md, "After the root has changed").
"""
