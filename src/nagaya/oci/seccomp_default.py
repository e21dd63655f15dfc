"""Docker's default seccomp profile as data, and how a profile becomes OCI linux.seccomp. Pure.

What the profile allows is Docker's published default (moby/profiles, seccomp, v0.2 series of 2026:
AF_ALG and AF_VSOCK sockets refused, io_uring left out), written as groups of names under a condition.
A profile of the user's in Docker's JSON format is resolved by the same rules: `archMap`, and
`includes`/`excludes` by capability, architecture and kernel.
Source: docs.docker.com/engine/security/seccomp, and the format of moby's seccomp package.
"""

from __future__ import annotations

import os

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

# What everyone may call.
_ALLOWED = """
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod
    chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range
    creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
    futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents
    getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32
    getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get
    ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat
    mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
    poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6
    pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom
    recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat
    renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
    set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
    setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall
    socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range
    syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink
    unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write
    writev
"""

# What a capability in the bounding set unlocks: without it the call would fail in the kernel anyway,
# but its code would still be reachable.
_BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr "
        "lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open "
        "quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_BY_ARCHITECTURE = (
    (("ppc64le",), "sync_file_range2 swapcontext"),
    (("arm", "arm64"), "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"),
    (("amd64", "x32"), "arch_prctl"),
    (("amd64", "x32", "x86"), "modify_ldt"),
    (("s390", "s390x"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
    (("riscv64",), "riscv_flush_icache"),
)

_AF_ALG, _AF_VSOCK = 38, 40
# PER_LINUX, PER_LINUX32, each also with UNAME26, and the query that changes nothing: personality(2)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET
_NEW_NAMESPACES = 0x7E020000
_ENOSYS = 38
_S390 = ["s390", "s390x"]

# OCI architecture -> the others its kernel runs too
_SUB_ARCHITECTURES = {
    "SCMP_ARCH_X86_64": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "SCMP_ARCH_AARCH64": ["SCMP_ARCH_ARM"],
    "SCMP_ARCH_MIPS64": ["SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32"],
    "SCMP_ARCH_MIPS64N32": ["SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64"],
    "SCMP_ARCH_MIPSEL64": ["SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32"],
    "SCMP_ARCH_MIPSEL64N32": ["SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64"],
    "SCMP_ARCH_S390X": ["SCMP_ARCH_S390"],
    "SCMP_ARCH_RISCV64": [],
    "SCMP_ARCH_LOONGARCH64": [],
}

# `uname -m` -> (OCI architecture, the profile format's own name for it)
_MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "armv7l": ("SCMP_ARCH_ARM", "arm"),
    "i686": ("SCMP_ARCH_X86", "x86"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64", "loong64"),
}


def _allow(names: str, *args: dict[str, Any], **more: Any) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names.split(), "action": "SCMP_ACT_ALLOW"}
    if args:
        rule["args"] = list(args)
    return rule | more


def _when(index: int, op: str, value: int) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value}


def default_profile() -> dict[str, Any]:
    """Docker's default profile in Docker's JSON format (with archMap, includes and excludes)."""
    no_admin = {"caps": ["CAP_SYS_ADMIN"]}
    rules = [
        _allow(_ALLOWED),
        # before 4.8 ptrace(2) could be used to get around seccomp
        _allow("process_vm_readv process_vm_writev ptrace", includes={"minKernel": "4.8"}),
        # AF_ALG: the kernel's crypto API, no use in a container and a history of holes (CVE-2026-31431).
        # AF_VSOCK: not namespaced, reaches the hypervisor's host and its other guests.
        _allow("socket", _when(0, "LT", _AF_ALG)),
        _allow("socket", _when(0, "EQ", _AF_ALG + 1)),
        _allow("socket", _when(0, "GT", _AF_VSOCK)),
    ]
    rules += [_allow("personality", _when(0, "EQ", value)) for value in _PERSONALITIES]
    rules += [_allow(names, includes={"arches": list(arches)}) for arches, names in _BY_ARCHITECTURE]
    rules += [_allow(names, includes={"caps": [cap]}) for cap, names in _BY_CAPABILITY.items()]
    rules += [
        # without CAP_SYS_ADMIN: threads and processes, but no namespaces
        _allow("clone", _when(0, "MASKED_EQ", _NEW_NAMESPACES), excludes=no_admin | {"arches": _S390}),
        # s390 has clone's first two arguments the other way round
        _allow(
            "clone",
            _when(1, "MASKED_EQ", _NEW_NAMESPACES),
            includes={"arches": _S390},
            excludes=no_admin,
        ),
        # clone3's flags lie in memory, where a filter cannot look: libc falls back to clone
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS, "excludes": no_admin},
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": name, "subArchitectures": list(others)}
            for name, others in _SUB_ARCHITECTURES.items()
        ],
        "syscalls": rules,
    }


def resolve(
    capabilities: Collection[str], machine: str = "", kernel: tuple[int, int] = (5, 0)
) -> dict[str, Any]:
    """OCI linux.seccomp of Docker's default profile.

    capabilities: the bounding set of the process, as "CAP_..."; machine: `uname -m`, this
    one's when empty; kernel: its (major, minor). Raises InvalidArgument for a machine nobody knows.
    """
    resolved = resolve_profile(default_profile(), capabilities, machine, kernel)
    if resolved is None:
        raise InvalidArgument("the default seccomp profile is empty", subject="seccomp")
    return resolved


def _bad(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"seccomp profile: {field} {message}", subject=field)


def _list(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _bad(field, "must be a list")
    return value


def _at_least(wanted: Any, kernel: tuple[int, int], field: str) -> bool:
    major, dot, minor = str(wanted).partition(".")
    if not dot or not (major + minor).isdigit():
        raise _bad(field, f"must be like '4.8', not {wanted!r}")
    return kernel >= (int(major), int(minor))


def _applies(
    call: dict[str, Any], capabilities: Collection[str], arch: str, kernel: tuple[int, int], field: str
) -> bool:
    excludes, includes = call.get("excludes") or {}, call.get("includes") or {}
    for name, value in (("excludes", excludes), ("includes", includes)):
        if not isinstance(value, dict):
            raise _bad(f"{field}.{name}", "must be an object")
    if arch in _list(excludes.get("arches"), f"{field}.excludes.arches"):
        return False
    if any(cap in capabilities for cap in _list(excludes.get("caps"), f"{field}.excludes.caps")):
        return False
    if excludes.get("minKernel") and _at_least(excludes["minKernel"], kernel, f"{field}.excludes.minKernel"):
        return False
    arches = _list(includes.get("arches"), f"{field}.includes.arches")
    if arches and arch not in arches:
        return False
    if any(cap not in capabilities for cap in _list(includes.get("caps"), f"{field}.includes.caps")):
        return False
    least = includes.get("minKernel")
    return not least or _at_least(least, kernel, f"{field}.includes.minKernel")


def resolve_profile(
    profile: dict[str, Any],
    capabilities: Collection[str],
    machine: str = "",
    kernel: tuple[int, int] = (5, 0),
) -> dict[str, Any] | None:
    """OCI linux.seccomp of a profile in Docker's JSON format (which contains OCI's).

    Arguments as for `resolve`. None when the profile says nothing, that is no seccomp. Values of
    actions and arguments are checked where they are compiled. Raises InvalidArgument.
    """
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise InvalidArgument(f"no seccomp architecture is known for {machine}", subject="seccomp")
    native, arch = _MACHINES[machine]
    calls = _list(profile.get("syscalls"), "syscalls")
    if not profile.get("defaultAction") and not calls:
        return None
    architectures = _list(profile.get("architectures"), "architectures")
    mapped = _list(profile.get("archMap"), "archMap")
    if architectures and mapped:
        raise _bad("architectures", "and archMap must not both be given")
    if mapped:
        architectures = []
        for index, entry in enumerate(mapped):
            if not isinstance(entry, dict):
                raise _bad(f"archMap[{index}]", "must be an object")
            if entry.get("architecture") == native:
                others = _list(entry.get("subArchitectures"), f"archMap[{index}].subArchitectures")
                architectures = [native, *others]
                break
    resolved: dict[str, Any] = {"defaultAction": profile.get("defaultAction")}
    for key in ("defaultErrnoRet", "flags", "listenerPath", "listenerMetadata"):
        if profile.get(key) is not None:
            resolved[key] = profile[key]
    if architectures:
        resolved["architectures"] = list(architectures)
    rules = []
    for index, call in enumerate(calls):
        field = f"syscalls[{index}]"
        if not isinstance(call, dict):
            raise _bad(field, "must be an object")
        name, names = call.get("name"), call.get("names")
        if name and names:
            raise _bad(field, "must not have both name and names")
        if _applies(call, capabilities, arch, kernel, field):
            rule = {"names": [name] if name else names}
            rule |= {k: call[k] for k in ("action", "errnoRet", "args") if call.get(k) is not None}
            rules.append(rule)
    if rules:
        resolved["syscalls"] = rules
    return resolved
