"""seccomp(2): OCI linux.seccomp compiled to classic BPF, and loaded.

`compile_profile` is pure and deterministic, so its result may be cached by the profile's hash. It
decides as libseccomp and runc do (rules whose arguments differ are alternatives; an unconditional
rule beats conditional ones; unknown names are ignored; a call newer than every call the profile
knows gets ENOSYS, so that programs fall back), but finds a call's action by binary search over
ranges of numbers. Sources: seccomp(2), OCI config-linux.md "Seccomp", linux/filter.h, linux/audit.h.
See docs/adr/0003-seccomp-and-cgroups.md.
"""

from __future__ import annotations

from _struct import Struct

from nagaya.errors import InvalidArgument
from nagaya.linux import os
from nagaya.linux.seccomp_load import FLAG_NEW_LISTENER
from nagaya.linux.seccomp_tables import table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # (argument index, operator, value, second value)
    Condition = tuple[int, str, int, int]
    # a call's action: what to return, or alternatives of conditions and what to return
    Leaf = int | tuple[tuple[tuple[Condition, ...], int], ...]

RET_KILL_PROCESS = 0x80000000
RET_KILL_THREAD = 0x00000000
RET_TRAP = 0x00030000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_TRACE = 0x7FF00000
RET_LOG = 0x7FFC0000
RET_ALLOW = 0x7FFF0000

ACTIONS = {
    "SCMP_ACT_KILL": RET_KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": RET_KILL_PROCESS,
    "SCMP_ACT_TRAP": RET_TRAP,
    "SCMP_ACT_ERRNO": RET_ERRNO,
    "SCMP_ACT_TRACE": RET_TRACE,
    "SCMP_ACT_ALLOW": RET_ALLOW,
    "SCMP_ACT_LOG": RET_LOG,
    "SCMP_ACT_NOTIFY": RET_USER_NOTIF,
}
OPERATORS = frozenset(
    (
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    )
)
FLAG_TSYNC = 1
FLAG_LOG = 2
FLAG_SPEC_ALLOW = 4
FLAG_WAIT_KILLABLE_RECV = 32
FLAGS = {
    # harmless and meaningless for one thread that is about to exec: accepted, and left out (runc)
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": FLAG_WAIT_KILLABLE_RECV,
}

# OCI name -> our table; "" for one that this kernel could not run beside ours: its calls meet the
# action for a foreign architecture whether it is named or not.
ARCHITECTURES = {
    "SCMP_ARCH_X86": "x86",
    "SCMP_ARCH_X86_64": "x86_64",
    "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_ARM": "arm",
    "SCMP_ARCH_AARCH64": "aarch64",
    "SCMP_ARCH_MIPS": "",
    "SCMP_ARCH_MIPS64": "",
    "SCMP_ARCH_MIPS64N32": "",
    "SCMP_ARCH_MIPSEL": "",
    "SCMP_ARCH_MIPSEL64": "",
    "SCMP_ARCH_MIPSEL64N32": "",
    "SCMP_ARCH_PPC": "",
    "SCMP_ARCH_PPC64": "",
    "SCMP_ARCH_PPC64LE": "",
    "SCMP_ARCH_S390": "",
    "SCMP_ARCH_S390X": "",
    "SCMP_ARCH_RISCV64": "",
    "SCMP_ARCH_LOONGARCH64": "",
    "SCMP_ARCH_PARISC": "",
    "SCMP_ARCH_PARISC64": "",
    "SCMP_ARCH_M68K": "",
    "SCMP_ARCH_SH": "",
    "SCMP_ARCH_SHEB": "",
}
AUDIT_ARCH = {"x86_64": 0xC000003E, "x86": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
X32_BIT = 0x40000000
_32_BIT = frozenset(("x86", "x32", "arm"))

# x86 reaches these also through socketcall(2) and ipc(2), with this number as first argument.
_SOCKETCALL = (
    "socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom "
    "shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg"
).split()
_IPC = {
    "semop": 1,
    "semget": 2,
    "semctl": 3,
    "semtimedop": 4,
    "msgsnd": 11,
    "msgrcv": 12,
    "msgget": 13,
    "msgctl": 14,
    "shmat": 21,
    "shmdt": 22,
    "shmget": 23,
    "shmctl": 24,
}

_LD, _JA, _JEQ, _JGT, _JGE, _RET, _AND = 0x20, 0x05, 0x15, 0x25, 0x35, 0x06, 0x54
_INSTRUCTION = Struct("=HBBI")
_MAX_INSTRUCTIONS = 4096
_REACH = 250  # of 255: leaves room for what is put between a jump and its target
_EPERM, _ENOSYS = 1, 38


class _Code:
    """A program built from its end, so that every jump's target is there before the jump.

    A label is a position counted from the end.
    """

    __slots__ = ("returns", "reversed")

    def __init__(self) -> None:
        self.reversed: list[tuple[int, int, int, int]] = []
        self.returns: dict[int, int] = {}

    def put(self, op: int, k: int, jt: int = 0, jf: int = 0) -> int:
        self.reversed.append((op, jt, jf, k))
        return len(self.reversed) - 1

    def ret(self, value: int) -> int:
        """The label of a near `return value`."""
        label = self.returns.get(value)
        if label is None or len(self.reversed) - label > _REACH:
            label = self.returns[value] = self.put(_RET, value)
        return label

    def near(self, label: int) -> int:
        """The label itself, or that of a jump to it when it is out of a conditional jump's reach."""
        distance = len(self.reversed) - label - 1
        return label if distance < _REACH else self.put(_JA, distance)

    def jump(self, op: int, k: int, then: int, other: int) -> int:
        """A conditional jump to two labels."""
        then, other = self.near(then), self.near(other)
        here = len(self.reversed)
        return self.put(op, k, here - then - 1, here - other - 1)

    def condition(self, condition: Condition, then: int, other: int, wide: bool) -> int:
        """The test of one argument; only its low 32 bits exist for a 32-bit architecture."""
        index, operator, value, second = condition
        if operator == "SCMP_CMP_NE":
            operator, then, other = "SCMP_CMP_EQ", other, then
        elif operator == "SCMP_CMP_LT":
            operator, then, other = "SCMP_CMP_GE", other, then
        elif operator == "SCMP_CMP_LE":
            operator, then, other = "SCMP_CMP_GT", other, then
        at = 16 + 8 * index  # struct seccomp_data: nr, arch, instruction_pointer, args[6]
        low, high = value & 0xFFFFFFFF, value >> 32
        if operator == "SCMP_CMP_MASKED_EQ":
            wanted = second & value
            label = self.jump(_JEQ, wanted & 0xFFFFFFFF, then, other)
            label = self.put(_AND, low)
            label = self.put(_LD, at)
            if wide and high:
                self.jump(_JEQ, wanted >> 32, label, other)
                self.put(_AND, high)
                label = self.put(_LD, at + 4)
            return label
        op = {"SCMP_CMP_EQ": _JEQ, "SCMP_CMP_GE": _JGE, "SCMP_CMP_GT": _JGT}[operator]
        self.jump(op, low, then, other)
        label = self.put(_LD, at)
        if wide:
            label = self.jump(_JEQ, high, label, other)
            if op != _JEQ:
                label = self.jump(_JGT, high, then, label)
            label = self.put(_LD, at + 4)
        return label

    def leaf(self, leaf: Leaf, default: int, wide: bool) -> int:
        """What happens to one call: a return, or the alternatives in order, and then the default."""
        if isinstance(leaf, int):
            return self.ret(leaf)
        label = self.ret(default)
        for conditions, action in reversed(leaf):
            other, label = label, self.ret(action)
            other = self.near(other)
            for condition in reversed(conditions):
                label = self.condition(condition, label, other, wide)
        return label

    def search(self, starts: list[int], leaves: list[Leaf], default: int, wide: list[bool]) -> int:
        """Binary search: the leaf of the last start that is not above the call's number."""
        made: dict[tuple[Leaf, bool], int] = {}

        def build(first: int, last: int) -> int:
            if last - first == 1:
                leaf = leaves[first]
                if isinstance(leaf, int):
                    return self.ret(leaf)
                key = (leaf, wide[first])
                if key not in made:
                    made[key] = self.leaf(leaf, default, wide[first])
                return made[key]
            middle = (first + last) // 2
            high = build(middle, last)
            low = build(first, middle)
            return self.jump(_JGE, starts[middle], high, low)

        return build(0, len(starts))

    def finish(self) -> bytes:
        if len(self.reversed) > _MAX_INSTRUCTIONS:
            raise InvalidArgument(
                f"the seccomp profile needs {len(self.reversed)} BPF instructions, "
                f"the kernel takes {_MAX_INSTRUCTIONS}",
                subject="linux.seccomp",
            )
        put = _INSTRUCTION.pack
        return b"".join([put(*instruction) for instruction in reversed(self.reversed)])


def _bad(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {message}", subject=field)


def _action(name: Any, errno_ret: Any, field: str, errno_field: str) -> int:
    if not isinstance(name, str) or name not in ACTIONS:
        raise _bad(field, f"unknown seccomp action {name!r:.60}")
    action = ACTIONS[name]
    if action not in (RET_ERRNO, RET_TRACE):
        return action
    if errno_ret is None:
        return action | _EPERM
    most = 4095 if action == RET_ERRNO else 0xFFFF
    if isinstance(errno_ret, bool) or not isinstance(errno_ret, int) or not 0 <= errno_ret <= most:
        raise _bad(errno_field, f"must be a number from 0 to {most}, not {errno_ret!r:.60}")
    return action | errno_ret


def _word(value: Any, field: str) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise _bad(field, f"must be an unsigned 64-bit number, not {value!r:.60}")
    return value


def _conditions(args: Any, field: str) -> list[tuple[Condition, ...]]:
    """The alternatives of a rule's args; [()] for none."""
    if not args:
        return [()]
    if not isinstance(args, list):
        raise _bad(field, "must be a list")
    conditions: list[Condition] = []
    for index, arg in enumerate(args):
        where = f"{field}[{index}]"
        if not isinstance(arg, dict):
            raise _bad(where, "must be an object")
        number = _word(arg.get("index"), f"{where}.index")
        if number > 5:
            raise _bad(f"{where}.index", f"a system call has 6 arguments, there is no index {number}")
        operator = arg.get("op")
        if not isinstance(operator, str) or operator not in OPERATORS:
            raise _bad(f"{where}.op", f"unknown seccomp operator {operator!r:.60}")
        value = _word(arg.get("value"), f"{where}.value")
        conditions.append((number, operator, value, _word(arg.get("valueTwo"), f"{where}.valueTwo")))
    indices = [condition[0] for condition in conditions]
    if len(set(indices)) < len(indices):
        # libseccomp cannot join conditions on one argument: runc makes each an alternative
        return [(condition,) for condition in conditions]
    return [tuple(conditions)]


def native_architecture() -> str:
    """The name of this machine's table. Raises InvalidArgument where there is none."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH:
        raise _bad("linux.seccomp", f"seccomp profiles cannot be compiled for {machine} yet")
    return machine


def _architectures(seccomp: dict[str, Any], native: str) -> list[str]:
    names = [native]  # as libseccomp: the native one is always in
    listed = seccomp.get("architectures") or []
    if not isinstance(listed, list):
        raise _bad("linux.seccomp.architectures", "must be a list")
    for index, name in enumerate(listed):
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise _bad(f"linux.seccomp.architectures[{index}]", f"unknown architecture {name!r:.60}")
        ours = ARCHITECTURES[name]
        if ours and ours not in names:
            names.append(ours)
    return names


class _Rules:
    """The rules of one architecture: {number: action or alternatives}, and the highest number that
    the profile names."""

    __slots__ = ("alternatives", "last", "numbers", "plain", "x86")

    def __init__(self, architecture: str) -> None:
        self.numbers = table(architecture)
        self.plain: dict[int, int] = {}
        self.alternatives: dict[int, list[tuple[tuple[Condition, ...], int]]] = {}
        self.last = 0
        self.x86 = architecture == "x86"

    def add(self, name: str, choices: list[tuple[Condition, ...]], action: int) -> None:
        number = self.numbers.get(name)
        if number is not None:
            if choices[0]:
                self.alternatives.setdefault(number, []).extend((c, action) for c in choices)
            else:
                self.plain.setdefault(number, action)
        # with conditions the real arguments lie in memory, where BPF cannot look; libseccomp compares
        # socketcall's own registers instead, which means nothing: such rules do not count here
        if self.x86 and not choices[0]:
            self._multiplexed(name, action)

    def _multiplexed(self, name: str, action: int) -> None:
        if name in _SOCKETCALL:
            number, selector = self.numbers["socketcall"], _SOCKETCALL.index(name) + 1
        elif name in _IPC:
            number, selector = self.numbers["ipc"], _IPC[name]
        else:
            return
        condition = (0, "SCMP_CMP_EQ", selector, 0)
        self.alternatives.setdefault(number, []).append(((condition,), action))

    def leaf(self, number: int) -> Leaf:
        plain = self.plain.get(number)
        return tuple(self.alternatives[number]) if plain is None else plain


def _segments(
    rules: _Rules, default: int, base: int, enosys: bool, starts: list[int], leaves: list[Leaf]
) -> None:
    """Append the ranges of one architecture, from number `base` on; equal neighbours are merged."""

    def add(start: int, leaf: Leaf) -> None:
        if starts and starts[-1] == start:
            starts.pop()
            leaves.pop()
        if not leaves or leaves[-1] != leaf or start == base:
            starts.append(start)
            leaves.append(leaf)

    add(base, default)
    for number in sorted(rules.plain.keys() | rules.alternatives.keys()):
        add(base + number, rules.leaf(number))
        add(base + number + 1, default)
    if enosys and rules.last:
        add(base + rules.last + 1, RET_ERRNO | _ENOSYS)


def compile_profile(seccomp: dict[str, Any], *, native: str = "") -> bytes:
    """Compile OCI linux.seccomp to a BPF program (an array of struct sock_filter).

    native: the machine's architecture ("x86_64", "aarch64"); this machine's when empty.
    Raises InvalidArgument naming the field, as "linux.seccomp.syscalls[3].action".
    """
    native = native or native_architecture()
    default = _action(
        seccomp.get("defaultAction"),
        seccomp.get("defaultErrnoRet"),
        "linux.seccomp.defaultAction",
        "linux.seccomp.defaultErrnoRet",
    )
    if default == RET_USER_NOTIF:
        raise _bad("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be the default action")
    names = _architectures(seccomp, native)
    rules = {name: _Rules(name) for name in names}
    calls = seccomp.get("syscalls") or []
    if not isinstance(calls, list):
        raise _bad("linux.seccomp.syscalls", "must be a list")
    for index, call in enumerate(calls):
        _add_call(call, f"linux.seccomp.syscalls[{index}]", default, rules)
    # a call that did not exist when the profile was written is answered as by an older kernel
    enosys = default & 0xFFFF0000 not in (RET_ALLOW, RET_LOG, RET_TRACE)

    code = _Code()
    dispatch: list[tuple[int, int]] = []
    for name in names:
        if name == "x32":
            continue  # shares x86_64's audit number: the other half of its range
        starts: list[int] = []
        leaves: list[Leaf] = []
        _segments(rules[name], default, 0, enosys, starts, leaves)
        wide = [name not in _32_BIT] * len(starts)
        if name == "x86_64":
            # numbers with the x32 bit, when that ABI is not named, are a foreign architecture's;
            # -1 is what a tracer leaves when it skips a call
            if "x32" in rules:
                more: list[int] = []
                others: list[Leaf] = []
                _segments(rules["x32"], default, X32_BIT, enosys, more, others)
                starts += more
                leaves += others
            else:
                starts += [X32_BIT, 0xFFFFFFFF]
                leaves += [RET_KILL_THREAD, default]
            wide += [False] * (len(starts) - len(wide))
        code.search(starts, leaves, default, wide)
        dispatch.append((AUDIT_ARCH[name], code.put(_LD, 0)))
    label = code.ret(RET_KILL_THREAD)
    for audit, block in reversed(dispatch):
        label = code.jump(_JEQ, audit, block, label)
    code.put(_LD, 4)
    return code.finish()


def _add_call(call: Any, field: str, default: int, rules: dict[str, _Rules]) -> None:
    if not isinstance(call, dict):
        raise _bad(field, "must be an object")
    action = _action(call.get("action"), call.get("errnoRet"), f"{field}.action", f"{field}.errnoRet")
    names = call.get("names")
    if not isinstance(names, list) or not names:
        raise _bad(f"{field}.names", "must be a list with at least one name")
    choices = _conditions(call.get("args"), f"{field}.args")
    for name in names:
        if not isinstance(name, str) or not name:
            raise _bad(f"{field}.names", f"{name!r:.60} is not the name of a system call")
        if action == RET_USER_NOTIF and name == "write":
            # the process could not hand over the listener any more
            raise _bad(f"{field}.action", "SCMP_ACT_NOTIFY cannot be used for the write syscall")
        for one in rules.values():
            number = one.numbers.get(name, 0)
            if number > one.last:
                one.last = number
            if action != default:
                one.add(name, choices, action)


def flags(seccomp: dict[str, Any]) -> int:
    """The flags for `load` of OCI linux.seccomp (pure). Without a `flags` list SPEC_ALLOW is set, as
    runc does: mitigations that Spectre once asked for cost every system call much. A profile with
    SCMP_ACT_NOTIFY needs a listener. Raises InvalidArgument."""
    listed = seccomp.get("flags")
    result = FLAG_SPEC_ALLOW if listed is None else 0
    for index, name in enumerate(listed or []):
        if name not in FLAGS:
            raise _bad(f"linux.seccomp.flags[{index}]", f"unknown seccomp flag {name!r:.60}")
        result |= FLAGS[name]
    if any(call.get("action") == "SCMP_ACT_NOTIFY" for call in seccomp.get("syscalls") or []):
        result |= FLAG_NEW_LISTENER
    return result


# what a process that has loaded its filter before its last clone calls until its program runs
_AFTER_CLONE = (
    "clone",
    "sendmsg",
    "write",
    "read",
    "setsid",
    "ioctl",
    "execve",
    "exit_group",
    "close",
    "recvmsg",
)


def precompile(seccomp: dict[str, Any]) -> dict[str, Any]:
    """The profile as a document that costs nothing to use: {"compiled": the program in hex, "flags",
    "early": it refuses what a process needs that loads it before its last clone}.

    For whoever starts many containers with one profile; the runtime takes it in place of the
    profile. Raises InvalidArgument.
    """
    calls = seccomp.get("syscalls") or []
    program = compile_profile(seccomp)
    passing = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY")
    allowed = {n for c in calls if c.get("action") in passing for n in c.get("names") or []}
    permissive = seccomp.get("defaultAction") in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG")
    early = not permissive and not allowed.issuperset(_AFTER_CLONE)
    bits = flags(seccomp)
    document = {"compiled": program.hex(), "flags": bits, "early": early}
    if bits & FLAG_NEW_LISTENER:
        for key in ("listenerPath", "listenerMetadata"):
            document[key] = seccomp.get(key) or ""
    return document
