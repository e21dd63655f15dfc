"""SELinux labels of programs, mounts and keys, in a machine whose kernel has a policy
(`./dev test-vm --selinux`)."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root

LABEL = "nagt_u:nagt_r:nagt_t:s0:c1,c2"
FILES = "nagt_u:object_r:nagt_file_t:s0:c1,c2"
CURRENT = ("cat", "/proc/self/attr/current")
_KEYCTL, _GET_SECURITY = 250, 17


def test_the_program_has_its_label(box: Bundle) -> None:
    box.spec["process"]["selinuxLabel"] = LABEL
    done = box.run(*CURRENT)
    assert (done.returncode, done.stdout.rstrip("\0\n")) == (0, LABEL), done


def test_and_with_no_new_privileges(box: Bundle) -> None:
    box.spec["process"] |= {"selinuxLabel": LABEL, "noNewPrivileges": True}
    assert box.run(*CURRENT).stdout.rstrip("\0\n") == LABEL


def test_a_further_program_has_it_or_its_own(events_box: Bundle) -> None:
    events_box.spec["process"]["selinuxLabel"] = LABEL
    events_box.start()
    assert events_box.ok("exec", events_box.id, *CURRENT).rstrip("\0\n") == LABEL
    other = LABEL.replace("c1,c2", "c0,c3")
    said = events_box.ok("exec", "--process-label", other, events_box.id, *CURRENT)
    assert said.rstrip("\0\n") == other


def security_of(key: int) -> str:
    """A key's label (keyctl(2), KEYCTL_GET_SECURITY)."""
    text = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(_KEYCTL, _GET_SECURITY, key, text, len(text), 0) > 0, ctypes.get_errno()
    return text.value.decode()


def test_the_session_keyring_has_the_label(events_box: Bundle) -> None:
    """crun 1.8 labels it, too, but names it otherwise."""
    events_box.spec["process"]["selinuxLabel"] = LABEL
    events_box.start()
    found = re.search(rf"^([0-9a-f]+) .* _ses\.{events_box.id}:", Path("/proc/keys").read_text(), re.M)
    assert found is not None
    assert security_of(int(found[1], 16)) == LABEL


def test_mounts_have_the_label_for_files(box: Bundle) -> None:
    box.spec["linux"]["mountLabel"] = FILES
    box.spec["mounts"].append(
        {"destination": "/empty", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}
    )
    said = box.shell("cat /proc/self/mounts")
    labelled = {line.split()[1] for line in said.splitlines() if f'context="{FILES}"' in line}
    assert {"/dev", "/dev/pts", "/dev/shm", "/empty"} <= labelled
    assert not {"/proc", "/sys", "/"} & labelled


def test_a_tmpfs_that_begins_with_a_copy_has_it(events_box: Bundle) -> None:
    events_box.spec["linux"]["mountLabel"] = FILES
    events_box.spec["mounts"].append(
        {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}
    )
    said = events_box.shell("cat /proc/self/mounts; cat /etc/passwd")
    assert re.search(rf'^tmpfs /etc tmpfs .*context="{FILES}"', said, re.M) and "root:x:0" in said


@pytest.mark.parametrize("field", ["selinuxLabel", "mountLabel"])
def test_a_label_that_the_policy_does_not_know_is_an_error(box: Bundle, field: str) -> None:
    box.spec["process" if field == "selinuxLabel" else "linux"][field] = "nagt_u:nagt_r:nowhere_t:s0"
    done = box.run("true")
    assert done.returncode != 0 and "invalid argument" in done.stderr.lower(), done
    assert box.leaks() == []
