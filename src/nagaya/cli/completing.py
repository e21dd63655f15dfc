"""What may come next on a command line: for the shells' completion.

A shell's script asks `nagaya __complete WORD... CURRENT`, which prints one candidate a line, with what it
is about after a tab. Verbs and flags come from their own tables, names from the daemon, if one runs: a
person who presses a key starts none.
"""

from __future__ import annotations

from nagaya.cli.flags import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import ModuleType
    from typing import Any

    from nagaya.cli.http import Client

    Candidate = tuple[str, str]
    Names = Callable[[str], "Iterable[Candidate]"]

# what a verb's arguments name, by its module: one kind for all, or one each
_ARGUMENTS: dict[str, str | tuple[str, ...]] = {
    **dict.fromkeys(("kill", "pause", "restart", "stop", "wait", "update", "stats"), "running"),
    **dict.fromkeys(("attach", "exec", "port", "top"), ("running",)),
    **dict.fromkeys(("rm", "unpause"), "container"),
    **dict.fromkeys(("commit", "diff", "explain", "export", "logs", "rename"), ("container",)),
    "start": "stopped",
    **dict.fromkeys(("create", "history", "push", "run", "tag"), ("image",)),
    **dict.fromkeys(("rmi", "save"), "image"),
    **dict.fromkeys(("network_connect", "network_disconnect"), ("network", "container")),
    "network_rm": "network",
    "volume_rm": "volume",
    "completion": ("shell",),
}
_VALUES: dict[str, str] = {
    **dict.fromkeys(("network", "net"), "network"),
    "cache-from": "image",
    "progress": "progress",
    "allow": "allow",
    "volumes-from": "container",
    "restart": "restart",
    "pull": "pull",
    "format": "format",
    **dict.fromkeys(("signal", "stop-signal"), "signal"),
    "type": "kind",
}
_FIXED: dict[str, tuple[str, ...]] = {
    "shell": ("bash", "zsh", "fish"),
    "restart": ("no", "always", "unless-stopped", "on-failure"),
    "pull": ("always", "missing", "never"),
    "allow": ("security.insecure",),
    "progress": ("auto", "plain", "tty", "quiet"),
    "format": ("json", "table"),
    "signal": ("HUP", "INT", "KILL", "QUIT", "STOP", "TERM", "USR1", "USR2"),
    "kind": ("container", "image", "network", "volume"),
}


def candidates(
    words: Sequence[str],
    current: str,
    verbs: Mapping[str, str],
    nouns: Mapping[str, Mapping[str, str]],
    load: Callable[[str], ModuleType],
    general: Sequence[Flag],
    names: Names,
) -> list[Candidate]:
    """What may stand in place of `current`, which follows the complete `words` (pure but for `names`, which
    knows the objects of a kind).

    verbs: module of each verb; nouns: the same below each noun; general: flags that come before a verb.
    """
    rest, value_of = _after_flags(words, general)
    if value_of is not None:
        return []
    if not rest:
        found = [(flag, text) for flag, text in _flags(general)] if current.startswith("-") else []
        found += [(verb, str(load(module).SUMMARY)) for verb, module in verbs.items()]
        found += [(noun, f"Commands for {noun}s") for noun in nouns if noun not in verbs]
        return _beginning(current, found)
    head, *rest = rest
    noun = ""
    if head in nouns:
        if not rest:
            below = nouns[head].items()
            return _beginning(current, [(verb, str(load(module).SUMMARY)) for verb, module in below])
        noun = head
        module = nouns[head].get(rest[0], "")
        rest = rest[1:]
    else:
        module = verbs.get(head, "")
    if not module:
        return []
    return _of_verb(load(module), module, noun, rest, current, names)


def host(words: Sequence[str]) -> str:
    """The value of -H or --host before the verb, "" when there is none."""
    for index, word in enumerate(words):
        if word in ("-H", "--host"):
            return "".join(words[index + 1 : index + 2])
        if word.startswith("--host="):
            return word.removeprefix("--host=")
    return ""


def _of_verb(
    verb: ModuleType, module: str, noun: str, words: Sequence[str], current: str, names: Names
) -> list[Candidate]:
    flags = {f"--{flag.name}": flag for flag in verb.FLAGS}
    flags |= {f"-{flag.short}": flag for flag in verb.FLAGS if flag.short}
    arguments = 0
    waiting: Flag | None = None
    for word in words:
        if waiting is not None:
            waiting = None
        elif word.startswith("-") and word != "-":
            flag = flags.get(word.partition("=")[0])
            waiting = flag if flag is not None and flag.kind != "bool" and "=" not in word else None
        else:
            arguments += 1
            if not getattr(verb, "INTERSPERSED", True):
                return []  # from here on the words are the container's
    if waiting is not None:
        return _of_kind(_VALUES.get(waiting.name, ""), current, names)
    if current.startswith("-"):
        return _beginning(current, [*_flags(verb.FLAGS), ("--help", "Print usage")])
    kinds = noun if module == "inspect" else _ARGUMENTS.get(module, "")
    if isinstance(kinds, tuple):
        kinds = kinds[arguments] if arguments < len(kinds) else ""
    if module == "inspect" and not noun:
        every = [one for kind in _FIXED["kind"] for one in _of_kind(kind, current, names)]
        return list(dict(every).items())
    return [one for one in _of_kind(kinds, current, names) if one[0] not in words]


def _after_flags(words: Sequence[str], flags: Sequence[Flag]) -> tuple[list[str], Flag | None]:
    """(the words from the first that is no flag on, the flag whose value is still to come)."""
    known = {f"--{flag.name}": flag for flag in flags} | {f"-{f.short}": f for f in flags if f.short}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        flag = known.get(rest.pop(0))
        if flag is not None and flag.kind != "bool":
            if not rest:
                return [], flag
            rest.pop(0)
    return rest, None


def _flags(flags: Iterable[Flag]) -> list[Candidate]:
    return [(f"--{flag.name}", flag.help) for flag in flags]


def _of_kind(kind: str, current: str, names: Names) -> list[Candidate]:
    if not kind:
        return []
    if kind in _FIXED and kind != "kind":
        return _beginning(current, [(word, "") for word in _FIXED[kind]])
    return _beginning(current, _FIXED_KINDS if kind == "kind" else names(kind))


_FIXED_KINDS = [(word, "") for word in _FIXED["kind"]]


def _beginning(current: str, found: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in found if one[0].startswith(current)]


def objects(client: Client, kind: str) -> list[Candidate]:
    """The names of a kind's objects, with what they are. Raises NagayaError when nobody answers."""
    if kind == "image":
        images = client.call("GET", "/images/json")
        tags = [tag for image in images for tag in image["RepoTags"] or ()]
        return [(tag.removesuffix(":latest"), "") for tag in tags]
    if kind == "volume":
        return [(volume["Name"], "") for volume in client.call("GET", "/volumes")["Volumes"] or ()]
    if kind == "network":
        return [(network["Name"], network["Driver"]) for network in client.call("GET", "/networks")]
    found: list[dict[str, Any]] = client.call("GET", "/containers/json", {"all": True})
    states = {"running": ("running", "paused"), "stopped": ("created", "exited")}.get(kind)
    return [
        (container["Names"][0].removeprefix("/"), f"{container['Image']}, {container['Status']}")
        for container in found
        if states is None or container["State"] in states
    ]


BASH = r"""# nagaya's words, completed: source <(nagaya completion bash)
_nagaya() {
    local current=${COMP_WORDS[COMP_CWORD]} line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" "$current" 2>/dev/null)
    declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$current"
}
complete -o default -F _nagaya nagaya
"""

ZSH = r"""#compdef nagaya
# nagaya's words, completed: nagaya completion zsh > "${fpath[1]}/_nagaya"
_nagaya() {
    local -a found
    local line
    while IFS= read -r line; do
        found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done < <("${words[1]}" __complete "${(@)words[2,CURRENT-1]}" "${words[CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then
        _describe nagaya found
    else
        _files
    fi
}
if [ "$funcstack[1]" = _nagaya ]; then
    _nagaya "$@"
else
    compdef _nagaya nagaya
fi
"""

FISH = r"""# nagaya's words, completed: nagaya completion fish > ~/.config/fish/completions/nagaya.fish
function __nagaya_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    # in quotes: a word that is not begun yet is one all the same
    $words[1] __complete $words[2..-1] "$current" 2>/dev/null
end
function __nagaya_or_files
    set -l found (__nagaya_complete)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c nagaya -f -a '(__nagaya_or_files)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
