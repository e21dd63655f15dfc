"""bpf(2): programs that decide which devices a v2 cgroup may use (BPF_PROG_TYPE_CGROUP_DEVICE).

Sources: bpf(2), linux/bpf.h (struct bpf_cgroup_dev_ctx, union bpf_attr),
Documentation/bpf/instruction-set.rst.
"""

from __future__ import annotations

import errno
from _ctypes import addressof
from _struct import Struct, pack, unpack_from

from nagaya.errors import KernelError
from nagaya.linux import os
from nagaya.linux.ffi import buffer, syscall, try_syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    # (allow, type "a" "b" "c", major, minor, access "rwm"); -1 for any number
    Rule = tuple[bool, str, int, int, str]

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_TYPE_CGROUP_DEVICE = 15
_ATTACH_CGROUP_DEVICE = 6
_F_ALLOW_MULTI, _F_REPLACE = 2, 4
_MOST_PROGRAMS = 64  # the kernel's own bound per cgroup (BPF_CGROUP_MAX_PROGS)

# struct bpf_cgroup_dev_ctx { u32 access_type (access << 16 | type); u32 major; u32 minor; }
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

# opcodes: class | source | operation
_LDX_W = 0x61
_MOV_K, _MOV_X = 0xB7, 0xBF
_AND32_K, _RSH32_K = 0x54, 0x74
_JA, _JNE_K, _JSET_K = 0x05, 0x55, 0x45
_JNE32_K = 0x56
_EXIT = 0x95
_INSTRUCTION = Struct("=BBhi")

# registers: r1 is the context; the rest as used here
_R0, _R1, _TYPE, _LEFT, _MAJOR, _MINOR = 0, 1, 2, 3, 4, 5


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def compile_devices(rules: Sequence[Rule]) -> bytes:
    """A program for rules of which, per access bit, the last that names the device wins (pure).

    The first rule names every device and is the default. From the last rule on, an allowing one takes
    its bits off what is still asked, a denying one that meets such a bit refuses; nothing left is
    granted.
    """
    put = _INSTRUCTION.pack

    def op(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
        return put(code, dst | src << 4, off, _signed(imm))

    program = [
        op(_LDX_W, _TYPE, _R1, 0),
        op(_MOV_X, _LEFT, _TYPE),
        op(_AND32_K, _TYPE, imm=0xFFFF),
        op(_RSH32_K, _LEFT, imm=16),
        op(_LDX_W, _MAJOR, _R1, 4),
        op(_LDX_W, _MINOR, _R1, 8),
    ]
    refuse = [op(_MOV_K, _R0, imm=0), op(_EXIT)]
    grant = [op(_MOV_K, _R0, imm=1), op(_EXIT)]
    for allow, kind, major, minor, access in reversed(rules[1:]):
        bits = sum(_ACCESS[letter] for letter in access)
        if allow:
            body = [op(_AND32_K, _LEFT, imm=~bits & 7), op(_JNE_K, _LEFT, off=2), *grant]
        else:
            # met: go to `refuse`, right behind the jump over it
            body = [op(_JSET_K, _LEFT, off=1, imm=bits), op(_JA, off=2), *refuse]
        tests: list[tuple[int, int]] = []
        if kind != "a":
            tests.append((_TYPE, _TYPES[kind]))
        if major >= 0:
            tests.append((_MAJOR, major))
        if minor >= 0:
            tests.append((_MINOR, minor))
        for index, (register, value) in enumerate(tests):
            skip = len(tests) - index - 1 + len(body)
            program.append(op(_JNE32_K, register, off=skip, imm=value))
        program += body
    program += grant if rules and rules[0][0] else refuse
    return b"".join(program)


def _bpf(command: int, attribute: bytes, subject: str) -> int:
    return syscall("bpf", command, attribute, len(attribute), subject=subject)


def load_device_program(program: bytes) -> int:
    """BPF_PROG_LOAD; the program's fd (close-on-exec). Raises KernelError, which on a refusal by the
    verifier ends with its last words."""
    instructions = buffer(program)
    license_ = buffer(b"Apache\0")
    log = buffer(4096)

    def attribute(level: int) -> bytes:
        return pack(
            "=IIQQIIQI",
            _TYPE_CGROUP_DEVICE,
            len(program) // 8,
            addressof(instructions),
            addressof(license_),
            level,
            len(log) if level else 0,
            addressof(log) if level else 0,
            0,
        ) + bytes(76)

    data = attribute(0)
    result, error = try_syscall("bpf", _PROG_LOAD, data, len(data))
    if not error:
        return result
    data = attribute(1)
    result, error = try_syscall("bpf", _PROG_LOAD, data, len(data))
    if not error:
        return result
    said = bytes(log).split(b"\0", 1)[0].decode("utf-8", "replace").strip().split("\n")[-1]
    reason = os.strerror(error).lower()
    raise KernelError(
        f"{reason} ({said})" if said else reason, subject="devices", step="load device program", errno=error
    )


def device_programs(cgroup_fd: int) -> list[int]:
    """The ids of the device programs attached to this very cgroup (BPF_PROG_QUERY)."""
    ids = buffer(4 * _MOST_PROGRAMS)
    # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt
    data = bytearray(pack("=IIIIQI", cgroup_fd, _ATTACH_CGROUP_DEVICE, 0, 0, addressof(ids), _MOST_PROGRAMS))
    attribute = buffer(bytes(data) + bytes(36))
    syscall("bpf", _PROG_QUERY, attribute, len(attribute), subject="query device programs")
    count = unpack_from("=I", bytes(attribute), 24)[0]
    return list(unpack_from(f"={count}I", bytes(ids)))


def _fd_of(program_id: int) -> int:
    return _bpf(_PROG_GET_FD_BY_ID, pack("=III", program_id, 0, 0), f"program {program_id}")


def replace_device_program(cgroup_fd: int, program: bytes) -> None:
    """Make `program` the cgroup's only device program; empty: none. At no moment is more allowed than
    before and after: the new one is attached before the old ones go. Raises KernelError."""
    old = device_programs(cgroup_fd)
    if program:
        new = load_device_program(program)
        replaced = -1
        try:
            flags = _F_ALLOW_MULTI
            if len(old) == 1:
                # exactly one: the kernel exchanges it in one step (Linux >= 5.6)
                replaced = _fd_of(old[0])
                flags |= _F_REPLACE
            data = pack("=IIIII", cgroup_fd, new, _ATTACH_CGROUP_DEVICE, flags, max(replaced, 0))
            _, error = try_syscall("bpf", _PROG_ATTACH, data, len(data))
            if error in (errno.EINVAL, errno.ENOENT) and replaced >= 0:
                data = pack("=IIIII", cgroup_fd, new, _ATTACH_CGROUP_DEVICE, _F_ALLOW_MULTI, 0)
                _bpf(_PROG_ATTACH, data, "attach device program")
            elif error:
                raise KernelError(
                    os.strerror(error).lower(), subject="devices", step="attach device program", errno=error
                )
            elif replaced >= 0:
                old = []
        finally:
            os.close(new)
            if replaced >= 0:
                os.close(replaced)
    for program_id in old:
        fd = _fd_of(program_id)
        try:
            data = pack("=IIIII", cgroup_fd, fd, _ATTACH_CGROUP_DEVICE, 0, 0)
            _bpf(_PROG_DETACH, data, "detach device program")
        finally:
            os.close(fd)
