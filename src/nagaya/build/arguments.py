"""ARG: which build arguments are seen where.

Global ones (before the first FROM) are seen by FROM, and by a stage that declares them again without a
value. A stage's own are seen from their declaration on, there and in stages that begin with it. What the
user gives goes before any default; ENV hides an ARG of the same name. The proxies need no declaration, and
leave no trace in the image unless they are declared (docs.docker.com, Dockerfile reference, ARG).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nagaya.build.language.ast import Arg, Pair
from nagaya.build.language.expand import expand
from nagaya.oci.platform import Platform

PROXIES = frozenset(
    name
    for scheme in ("HTTP", "HTTPS", "FTP", "NO", "ALL")
    for name in (f"{scheme}_PROXY", f"{scheme}_PROXY".lower())
)
_TRACELESS = frozenset({"SOURCE_DATE_EPOCH"})  # for the builder itself


def platform_values(target: Platform, build: Platform, stage: str = "") -> dict[str, str]:
    """The predefined arguments about platforms. stage: the target stage's name."""
    found = {"TARGETSTAGE": stage or "default"}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        found[f"{prefix}PLATFORM"] = str(platform)
        found[f"{prefix}OS"] = platform.os
        found[f"{prefix}ARCH"] = platform.architecture
        found[f"{prefix}VARIANT"] = platform.variant
    return found


def environment(variables: Iterable[str]) -> dict[str, str]:
    """ "NAME=value" lines as a table."""
    return {name: value for name, _, value in (line.partition("=") for line in variables)}


class Arguments:
    """The arguments of one build.

    given: what the user set (None: named without a value, and not in the client's environment).
    predefined: `platform_values`.
    """

    def __init__(
        self, given: Mapping[str, str | None], predefined: Mapping[str, str], escape: str = "\\"
    ) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}
        self.named = frozenset(given)
        self.escape = escape
        self.used: set[str] = set()
        self.globals = {name: self.given.get(name, value) for name, value in predefined.items()}

    def declare(self, instruction: Arg) -> None:
        """An ARG before the first FROM. Raises DockerfileError."""
        expanded = expand(instruction, self.globals, self.escape)
        for arg in expanded.args if isinstance(expanded, Arg) else ():
            self.used.add(arg.key)
            value = self.given.get(arg.key, arg.value)
            if value is not None:
                self.globals[arg.key] = value

    def unused(self) -> list[str]:
        """Given, and declared nowhere in what was built so far: worth a warning."""
        return sorted(self.named - self.used - PROXIES - _TRACELESS)


class StageArguments:
    """The arguments of one stage, as far as it has been read."""

    def __init__(self, build: Arguments, parent: StageArguments | None = None) -> None:
        self.build = build
        self.values: dict[str, str] = dict(parent.values) if parent else {}

    def declare(self, args: Sequence[Pair]) -> None:
        """An ARG's pairs, after expansion."""
        for arg in args:
            self.build.used.add(arg.key)
            value = self.build.given.get(arg.key, arg.value)
            if value is None:
                value = self.build.globals.get(arg.key)
            if value is not None:
                self.values[arg.key] = value

    def visible(self, env: Iterable[str]) -> dict[str, str]:
        """What variables in an instruction stand for: env is the configuration's Env."""
        proxies = {name: value for name, value in self.build.given.items() if name in PROXIES}
        return {**proxies, **self.values, **environment(env)}

    def for_run(self, env: Iterable[str]) -> list[str]:
        """What RUN's environment has besides env, sorted."""
        hidden = environment(env)
        proxies = {name: value for name, value in self.build.given.items() if name in PROXIES}
        return sorted(
            f"{name}={value}" for name, value in {**proxies, **self.values}.items() if name not in hidden
        )

    def recorded(self, env: Iterable[str]) -> list[str]:
        """Those of `for_run` on which the result depends: for the history, and for the cache."""
        return [line for line in self.for_run(env) if line.partition("=")[0] in self.values]
