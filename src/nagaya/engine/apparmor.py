"""AppArmor, on hosts that have it: the default profile, and which one a container gets.

Docker's rule: the profile that is named, none for privileged containers, else the default one. It is
loaded once by apparmor_parser(8), which alone can compile profiles (apparmor.d(5)); where that is not
installed there is no default, as with dockerd.
"""

from __future__ import annotations

import logging
import shutil
import subprocess

from nagaya.errors import FailedPrecondition, InvalidArgument

log = logging.getLogger(__name__)

DEFAULT = "nagaya-default"
UNCONFINED = "unconfined"
_ENABLED = "/sys/module/apparmor/parameters/enabled"
_LOADED = "/sys/kernel/security/apparmor/profiles"
_LOAD_TIMEOUT = 30.0

# All that namespaces, capabilities and seccomp leave is allowed, but what reaches the kernel as a whole:
# its settings (but shm*, msg* and sem, which are an ipc namespace's own), devices and security files.
# Signals and traces stay between the containers and what looks after them.
_TEXT = """\
profile nagaya-default flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  umount,
  deny mount,

  signal (receive) peer=unconfined,
  signal (send, receive) peer=nagaya-default,
  ptrace (trace, read, tracedby, readby) peer=nagaya-default,

  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/[^1-9s]* w,
  deny /proc/s[^ey]* w,
  deny /proc/{[^1-9s]*,s[^ey]*}/** w,
  deny /proc/sys/[^k]*/** w,
  deny /proc/sys/kernel/[^ms]** w,
  deny /proc/sys/kernel/m[^s]** w,
  deny /proc/sys/kernel/s[^eh]** w,
  deny /proc/sys/kernel/seccomp/** w,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/{firmware,devices/virtual/powercap,kernel/security}/** rwklx,
}
"""


def enabled() -> bool:
    """Does this kernel have AppArmor, switched on? Blocking, but only on sysfs."""
    return _read(_ENABLED).startswith("Y")


def load_default() -> str:
    """Load the default profile, in the place of an older one; its name. "" where the host has no AppArmor
    or no apparmor_parser, or refuses it, which the log says. Blocking."""
    if not enabled():
        return ""
    if (parser := shutil.which("apparmor_parser")) is None:
        log.warning("this host has AppArmor, but no apparmor_parser: containers run without a profile")
        return ""
    try:
        done = subprocess.run(
            [parser, "--replace", "--skip-cache"],
            input=_TEXT,
            capture_output=True,
            text=True,
            timeout=_LOAD_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("AppArmor's default profile is not loaded: %s", error)
        return ""
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        log.warning("AppArmor's default profile is not loaded: %s", reason[-1] if reason else done.returncode)
        return ""
    return DEFAULT


def chosen(named: str | None, *, privileged: bool, default: str) -> str:
    """The profile of a container: `named` by the user (None: nothing was said), else `default`. "": none.

    >>> chosen(None, privileged=False, default="nagaya-default")
    'nagaya-default'
    >>> chosen("unconfined", privileged=False, default="nagaya-default")
    ''
    """
    if named is None:
        return "" if privileged else default
    return "" if named == UNCONFINED else named


def require(profile: str, subject: str) -> None:
    """Raises FailedPrecondition on a host without AppArmor, InvalidArgument when the profile is not
    loaded. Blocking, but only on securityfs."""
    if not enabled():
        raise FailedPrecondition("this host has no AppArmor", subject=subject)
    # each line is NAME (MODE)
    if profile not in (line.rpartition(" ")[0] for line in _read(_LOADED).splitlines()):
        raise InvalidArgument(f"apparmor profile not found: {profile}", subject=subject)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
