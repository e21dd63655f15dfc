"""The seccomp compiler against libseccomp: both programs are run in a small BPF interpreter over all
system calls, several architectures and sampled arguments, and must decide alike."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import struct
from typing import Any

import pytest

from nagaya.linux import seccomp
from nagaya.linux.seccomp_tables import table
from nagaya.oci import seccomp_default

try:
    LIB: Any = ctypes.CDLL("libseccomp.so.2", use_errno=True)
except OSError:
    LIB = None

needs_libseccomp = pytest.mark.skipif(LIB is None, reason="libseccomp.so.2 is not installed")

TOKEN = {
    "x86_64": 0xC000003E,
    "x86": 0x40000003,
    "x32": 0x4000003E,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
OCI_ARCH = {ours: name for name, ours in seccomp.ARCHITECTURES.items() if ours}
OPERATOR = {
    name: number
    for number, name in enumerate(
        [
            "SCMP_CMP_NE",
            "SCMP_CMP_LT",
            "SCMP_CMP_LE",
            "SCMP_CMP_EQ",
            "SCMP_CMP_GE",
            "SCMP_CMP_GT",
            "SCMP_CMP_MASKED_EQ",
        ],
        start=1,
    )
}
BAD_ARCH = 0
MULTIPLEXED = {*seccomp._SOCKETCALL, *seccomp._IPC}


class Argument(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


@functools.cache
def decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))


def run(program: bytes, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """Interpret classic BPF over struct seccomp_data; every jump must stay inside the program."""
    six = (args + (0,) * 6)[:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *six)
    code = decode(program)
    at = accumulator = 0
    while True:
        op, then, other, k = code[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            at += k
        elif op == 0x06:
            return int(k)
        elif op == 0x15:
            at += then if accumulator == k else other
        elif op == 0x25:
            at += then if accumulator > k else other
        elif op == 0x35:
            at += then if accumulator >= k else other
        elif op == 0x45:
            at += then if accumulator & k else other
        else:
            raise AssertionError(f"unexpected instruction {op:#x}")


def action(rule: dict[str, Any], key: str = "action", errno_key: str = "errnoRet") -> int:
    value = seccomp.ACTIONS[rule[key]]
    if value in (seccomp.RET_ERRNO, seccomp.RET_TRACE):
        value |= rule.get(errno_key, 1)
    return value


def libseccomp(profile: dict[str, Any], architectures: list[str]) -> bytes:
    """Build the profile as runc does, with libseccomp."""
    LIB.seccomp_init.restype = ctypes.c_void_p
    default = action(profile, "defaultAction", "defaultErrnoRet")
    context = ctypes.c_void_p(LIB.seccomp_init(ctypes.c_uint32(default)))
    native = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[os.uname().machine]
    for name in architectures:
        if TOKEN[name] != native:
            assert LIB.seccomp_arch_add(context, ctypes.c_uint32(TOKEN[name])) == 0
    if native not in [TOKEN[name] for name in architectures]:
        assert LIB.seccomp_arch_remove(context, ctypes.c_uint32(native)) == 0
    for rule in profile.get("syscalls", []):
        value = action(rule)
        if value == default:
            continue
        args = rule.get("args") or []
        groups = [args]
        if len({arg["index"] for arg in args}) < len(args):
            groups = [[arg] for arg in args]
        for name in rule["names"]:
            number = LIB.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                continue
            for group in groups:
                array = (Argument * max(len(group), 1))(
                    *(
                        Argument(a["index"], OPERATOR[a["op"]], a["value"], a.get("valueTwo", 0))
                        for a in group
                    )
                )
                result = LIB.seccomp_rule_add_array(
                    context, ctypes.c_uint32(value), ctypes.c_int(number), ctypes.c_uint(len(group)), array
                )
                assert result == 0, (name, group, result)
    fd = os.memfd_create("bpf")
    try:
        assert LIB.seccomp_export_bpf(context, fd) == 0
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)
        LIB.seccomp_release(context)


def known(name: str, architecture: str) -> bool:
    number: int = LIB.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(TOKEN[architecture]), name.encode())
    return number != -1


def last_number(profile: dict[str, Any], architecture: str) -> int:
    """The highest number the profile names: runc answers what is above with ENOSYS."""
    numbers = table(architecture)
    named = [numbers.get(name, 0) for rule in profile.get("syscalls", []) for name in rule["names"]]
    return max(named, default=0)


def samples(profile: dict[str, Any], chooser: random.Random) -> list[tuple[int, ...]]:
    """Arguments around every value that the profile compares with, and some others."""
    values = {0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1}
    for rule in profile.get("syscalls", []):
        for arg in rule.get("args") or []:
            for value in (arg["value"], arg.get("valueTwo", 0)):
                values |= {value, (value + 1) % 2**64, (value - 1) % 2**64, value | 1 << 40}
    pool = sorted(values)
    vectors: list[tuple[int, ...]] = [(value,) * 6 for value in pool]
    vectors += [tuple(chooser.choice(pool) for _ in range(6)) for _ in range(40)]
    return vectors


def compare(profile: dict[str, Any], architectures: list[str], *, all_args: bool = False) -> int:
    native = "aarch64" if "aarch64" in architectures else "x86_64"
    full = {**profile, "architectures": [OCI_ARCH[name] for name in architectures]}
    ours = seccomp.compile_profile(full, native=native)
    theirs = libseccomp(profile, architectures)
    default = action(profile, "defaultAction", "defaultErrnoRet")
    permissive = default & 0xFFFF0000 in (seccomp.RET_ALLOW, seccomp.RET_LOG, seccomp.RET_TRACE)
    chooser = random.Random(1)
    vectors = samples(profile, chooser)
    with_args = {name for rule in profile.get("syscalls", []) if rule.get("args") for name in rule["names"]}
    plain = {name for rule in profile.get("syscalls", []) if not rule.get("args") for name in rule["names"]}
    if {"socketcall", "ipc"} <= plain:
        plain |= MULTIPLEXED
    compared = 0
    for architecture in architectures:
        audit = TOKEN[architecture] if architecture != "x32" else TOKEN["x86_64"]
        bit = seccomp.X32_BIT if architecture == "x32" else 0
        numbers = table(architecture)
        names = {number: name for name, number in numbers.items()}
        last = last_number(profile, architecture)
        for number in [*range(600), 0x0F0001, 0x0F0002, 0x0F0005, 0x123456]:
            name = names.get(number)
            newer = not permissive and last and number > last
            if (
                name is not None
                and not newer
                and not all(known(other, architecture) for other, n in numbers.items() if n == number)
            ):
                continue  # this libseccomp is older than the call
            if name in ("socketcall", "ipc") and architecture == "x86" and with_args & (MULTIPLEXED - plain):
                continue  # it compares the multiplexer's registers with the call's arguments
            vary = all_args or name in with_args or name in ("socketcall", "ipc")
            for args in vectors if vary else vectors[:1]:
                expected = seccomp.RET_ERRNO | 38 if newer else run(theirs, number | bit, audit, args)
                got = run(ours, number | bit, audit, args)
                assert got == expected, (architecture, number, name, [hex(a) for a in args])
                compared += 1
    # foreign architectures, and what a tracer leaves when it skips a call
    assert run(ours, 0, 0x12345678) == run(theirs, 0, 0x12345678) == BAD_ARCH
    if "x86_64" in architectures and "x32" not in architectures:
        for number in (seccomp.X32_BIT, seccomp.X32_BIT | 1, 0x7FFFFFFF):
            assert run(ours, number, TOKEN["x86_64"]) == run(theirs, number, TOKEN["x86_64"])
        if permissive or not last_number(profile, "x86_64"):
            assert run(ours, 0xFFFFFFFF, TOKEN["x86_64"]) == run(theirs, 0xFFFFFFFF, TOKEN["x86_64"])
    return compared


GROUPS = [["x86_64"], ["x86_64", "x86"], ["x86_64", "x86", "x32"], ["aarch64", "arm"], ["aarch64"]]


@needs_libseccomp
@pytest.mark.parametrize("capabilities", [(), ("CAP_SYS_ADMIN",), ("CAP_SYS_PTRACE", "CAP_SYS_TIME")])
@pytest.mark.parametrize("architectures", GROUPS, ids=lambda g: "+".join(g))
def test_dockers_default_profile_decides_as_with_libseccomp(
    architectures: list[str], capabilities: tuple[str, ...]
) -> None:
    profile = seccomp_default.resolve(capabilities, "aarch64" if "aarch64" in architectures else "x86_64")
    assert compare(profile, architectures) > 500


@needs_libseccomp
@pytest.mark.parametrize("operator", sorted(OPERATOR))
@pytest.mark.parametrize("value", [0, 1, 0x20000, 0xFFFFFFFF, 0x100000000, 0x7E020000, 2**64 - 1])
def test_every_operator_on_64_bit_values(operator: str, value: int) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {
                "names": ["clone", "socket", "personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 2, "op": operator, "value": value, "valueTwo": value & 0x1FFFFFFFF}],
            }
        ],
    }
    compare(profile, ["x86_64", "x86", "x32"])


@needs_libseccomp
def test_random_profiles() -> None:
    chooser = random.Random(7)
    names = sorted(set(table("x86_64")) & {n for n in table("x86_64") if known(n, "x86_64")})
    for _ in range(25):
        rules: list[dict[str, Any]] = []
        free = chooser.sample(names, 160)
        while free:
            some, free = free[: (n := chooser.randint(1, 30))], free[n:]
            rule: dict[str, Any] = {
                "names": some,
                "action": chooser.choice(
                    ["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_LOG"]
                ),
            }
            if chooser.random() < 0.4:
                indices = chooser.sample(range(6), chooser.randint(1, 3))
                rule["args"] = [
                    {
                        "index": index,
                        "op": chooser.choice(sorted(OPERATOR)),
                        "value": chooser.choice([0, 5, 0xFFFF, 2**32, 2**40 + 3]),
                        "valueTwo": chooser.choice([0, 1, 2**32]),
                    }
                    for index in indices
                ]
            rules.append(rule)
        default = chooser.choice(["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_LOG"])
        profile = {"defaultAction": default, "defaultErrnoRet": 13, "syscalls": rules}
        compare(profile, chooser.choice([["x86_64"], ["x86_64", "x86", "x32"]]))


@needs_libseccomp
def test_tables_agree_with_libseccomp_where_it_knows_the_name() -> None:
    for architecture in TOKEN:
        bit = seccomp.X32_BIT if architecture == "x32" else 0
        missing = 0
        for name, number in table(architecture).items():
            found = LIB.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(TOKEN[architecture]), name.encode())
            if found < 0:
                missing += 1
                continue
            assert found == number | bit, (architecture, name)
        assert missing < 60, architecture
