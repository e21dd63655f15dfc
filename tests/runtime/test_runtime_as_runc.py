"""What runc's users rely on beyond the specification: names, texts, order of options, hooks' surroundings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from bundles import Bundle, cgroups_named, wait_until

from nagaya.oci.seccomp_default import resolve

pytestmark = pytest.mark.root


def test_named_runc_it_is_runc(our_box: Bundle, tmp_path: Path) -> None:
    alias = tmp_path / "runc"
    alias.symlink_to(our_box.runtime)
    done = subprocess.run([alias, "--version"], capture_output=True, text=True, check=True)
    first, second, third = done.stdout.splitlines()[:3]
    assert first.startswith("runc version 0.") and second.startswith("commit: ")
    assert third.startswith("spec: 1.")
    done = subprocess.run([alias, "kill", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].strip().startswith("runc kill - ")


def test_options_may_follow_the_container(box: Bundle) -> None:
    box.start()
    box.ok("update", box.id, "--pids-limit", "77")
    assert box.ok("exec", box.id, "echo", "--force") == "--force\n"
    box.ok("delete", box.id, "--force")
    assert box.call("state", box.id).returncode == 1


def test_a_container_refused_for_its_cgroup_leaves_the_first_alive(our_box: Bundle) -> None:
    our_box.spec["linux"]["cgroupsPath"] = f"/{our_box.tag}"
    our_box.start()
    second = our_box.call("create", "--bundle", str(our_box.path), our_box.id + "b")
    assert second.returncode == 1
    assert "container's cgroup is not empty" in second.stderr
    assert our_box.status() == "running"
    assert our_box.ok("exec", our_box.id, "echo", "alive") == "alive\n"


def test_a_create_container_hook_runs_in_the_root_directory(box: Bundle) -> None:
    box.spec["root"]["readonly"] = False
    box.spec["hooks"] = {
        "createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "/usr/bin/touch ./from-the-hook"]}]
    }
    assert box.shell("ls /from-the-hook") == "/from-the-hook\n"


def test_a_start_container_hook_has_the_programs_environment(our_box: Bundle) -> None:
    # as runc does since 1.3
    our_box.spec["process"]["env"].append("ONE=two")
    our_box.spec["hooks"] = {
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", '[ "$ONE" = two ] && [ -n "$HOME" ]']}]
    }
    our_box.shell("true")


def test_a_hook_ended_by_a_signal(box: Bundle) -> None:
    box.spec["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}]}
    done = box.run("true")
    assert done.returncode == 1
    assert "error running hook" in done.stderr and "signal: killed" in done.stderr


def test_without_pivot_root_no_whole_proc_is_left_to_mount_another(box: Bundle) -> None:
    box.spec["process"]["capabilities"] = {
        kind: ["CAP_SYS_ADMIN", "CAP_SETFCAP"] for kind in ("bounding", "permitted")
    }
    (box.rootfs / "bin" / "unshare").symlink_to("busybox")
    script = "mount -t proc none /proc && echo mounted"
    done = box.run("unshare", "-mrpf", "sh", "-c", script, options=("--no-pivot",))
    assert done.returncode != 0
    assert "mounted" not in done.stdout and "denied" in done.stderr.lower(), done


def test_a_program_on_a_terminal_prints_plain_newlines(our_box: Bundle) -> None:
    # runc does so, too, but starts only where it has a terminal itself
    our_box.spec["process"]["terminal"] = True
    assert our_box.shell("echo one; echo two") == "one\ntwo\n"


def test_a_symbolic_link_for_proc_is_refused(box: Bundle) -> None:
    (box.rootfs / "proc").rmdir()
    (box.rootfs / "proc").symlink_to("/elsewhere")
    done = box.run("true")
    assert done.returncode == 1
    assert "must be mounted on ordinary directory" in done.stderr


def test_a_missing_or_foreign_cgroup_of_exec(box: Bundle) -> None:
    box.start()
    for argument, text in (
        ("..", "sub cgroup path"),
        ("nope", "adding pid"),
        ("nope:/", "unknown controller nope"),
    ):
        done = box.call("exec", "--cgroup", argument, box.id, "true")
        assert done.returncode == 255 and text in done.stderr, done


def test_an_ambient_capability_that_is_not_inheritable_is_warned_of(our_box: Bundle) -> None:
    capabilities = our_box.spec["process"]["capabilities"]
    capabilities["ambient"] = ["CAP_KILL"]
    done = our_box.run("true")
    assert done.returncode == 0
    assert "can't raise ambient capability CAP_KILL: " in done.stderr


def test_debug_has_the_words_that_runc_users_look_for(box: Bundle) -> None:
    box.save()
    box.spec["process"]["args"] = ["true"]
    box.save()
    done = box.call("--debug", "run", "--bundle", str(box.path), box.id)
    for words in ("nsexec", "child process in init()", "init: closing the pipe to signal completion"):
        assert words in done.stderr


def test_the_pidfd_socket_gets_a_pidfd(our_box: Bundle) -> None:
    # runc has it since 1.2
    path = str(our_box.base / "pidfd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        our_box.start(options=("--pidfd-socket", path))
        pids = [our_box.state()["pid"]]
        our_box.ok("exec", "--detach", "--pidfd-socket", path, our_box.id, "sleep", "1000")
        pids.append(int(our_box.ok("ps", "--format", "json", our_box.id).strip("[]\n").split(",")[1]))
        for pid in pids:
            end, _ = listener.accept()
            with end:
                name, fds, _, _ = socket.recv_fds(end, 64, 4)
            (pidfd,) = fds
            info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
            assert name == b"runc-pidfd" and f"Pid:\t{pid}\n" in info
            os.close(pidfd)


def test_without_pids_of_its_own_kill_ends_all(box: Bundle) -> None:
    if not box.is_ours:
        pytest.skip("runc does so since 1.2")
    box.spec["linux"]["namespaces"] = [n for n in box.spec["linux"]["namespaces"] if n["type"] != "pid"]
    box.start()
    box.ok("exec", "--detach", box.id, "sleep", "1000")
    os.kill(box.state()["pid"], 9)
    wait_until(lambda: box.status() == "stopped")
    box.ok("kill", box.id, "KILL")
    wait_until(lambda: box.ok("ps", "--format", "json", box.id) == "[]\n")
    assert box.call("kill", box.id, "KILL").returncode == 1


def test_list_of_a_root_that_is_not_there(our_box: Bundle) -> None:
    done = subprocess.run([our_box.runtime, "--root", "/nagt-none", "list"], capture_output=True, text=True)
    assert done.returncode == 1 and "open /nagt-none: no such file or directory" in done.stderr


def test_a_path_masked_twice_is_covered_once(our_box: Bundle) -> None:
    (our_box.rootfs / "hidden").mkdir()
    our_box.spec["linux"]["maskedPaths"] = ["/hidden", "/hidden"]
    assert our_box.shell("cat /proc/self/mounts").count(" /hidden ") == 1


def test_no_process_allowed_is_one(our_box: Bundle) -> None:
    our_box.spec["linux"].setdefault("resources", {})["pids"] = {"limit": 0}
    our_box.start()
    (pids,) = (p for p in cgroups_named(our_box.id) if (Path(p) / "pids.max").exists())
    assert (Path(pids) / "pids.max").read_text() == "1\n"


def test_who_waits_for_start_is_ended_by_a_signal(box: Bundle) -> None:
    box.save()
    box.ok("create", "--bundle", str(box.path), box.id)
    box.ok("kill", box.id, "TERM")
    wait_until(lambda: box.status() == "stopped")


def test_signals_are_the_programs_own_again_after_start(our_box: Bundle) -> None:
    our_box.start("sleep", "1000")
    status = Path(f"/proc/{our_box.state()['pid']}/status")
    wait_until(lambda: "Name:\tsleep" in status.read_text())
    assert "SigCgt:\t" + "0" * 16 in status.read_text()
    assert "SigIgn:\t" + "0" * 16 in status.read_text()


def test_the_real_time_slice_shrinks_in_any_order(our_box: Bundle) -> None:
    top = Path("/sys/fs/cgroup/cpu")
    if not (top / "cpu.rt_runtime_us").exists():
        pytest.skip("no real-time group scheduling")
    group = top / our_box.tag
    group.mkdir()
    try:
        for path in (group, group / "one"):
            path.mkdir(exist_ok=True)
            (path / "cpu.rt_runtime_us").write_text("100000")
        our_box.spec["linux"]["cgroupsPath"] = f"/{our_box.tag}/one"
        our_box.start()
        our_box.ok("update", "--cpu-rt-period", "50000", "--cpu-rt-runtime", "4000", our_box.id)
        assert (group / "one" / "cpu.rt_runtime_us").read_text() == "4000\n"
        our_box.ok("delete", "--force", our_box.id)
    finally:
        for name in cgroups_named(our_box.tag):
            for below in (Path(name) / "one", Path(name)):
                if below.is_dir():
                    below.rmdir()


def test_a_filter_older_than_faccessat2_stops_no_program(box: Bundle) -> None:
    capabilities = box.spec["process"]["capabilities"]["bounding"]
    profile = resolve(capabilities)
    for call in profile["syscalls"]:
        call["names"] = [name for name in call["names"] if name != "faccessat2"]
    box.spec["linux"]["seccomp"] = profile
    box.spec["process"]["noNewPrivileges"] = False
    assert box.shell("echo runs") == "runs\n"


@pytest.mark.parametrize("created", [False, True])
def test_a_program_that_the_kernel_refuses_says_so_on_its_stderr(box: Bundle, created: bool) -> None:
    (box.rootfs / "script").write_text("#!/no/interpreter\n")
    (box.rootfs / "script").chmod(0o755)
    expected = "exec /script: no such file or directory\n"
    if not created:
        done = box.run("/script")
        assert (done.returncode, done.stderr) == (1, expected)
        return
    box.spec["process"]["args"] = ["/script"]
    box.save()
    with (box.base / "out").open("wb") as out:
        create = box.argv("create", "--bundle", str(box.path), box.id)
        subprocess.run(create, stdout=out, stderr=out, stdin=subprocess.DEVNULL, check=True)
    box.ok("start", box.id)
    wait_until(lambda: box.status() == "stopped")
    assert expected in (box.base / "out").read_text()


def test_a_poststop_hook_that_fails_is_warned_of_and_the_others_run(our_box: Bundle) -> None:
    ran = our_box.base / "ran"
    our_box.spec["hooks"] = {
        "poststop": [
            {"path": "/bin/false"},
            {"path": "/bin/sh", "args": ["sh", "-c", f"echo yes > {ran}"]},
        ]
    }
    our_box.start()
    done = our_box.call("delete", "--force", our_box.id)
    assert done.returncode == 0 and "level=warning" in done.stderr
    assert "error running poststop hook #0: error running hook: exit status 1" in done.stderr
    assert ran.read_text() == "yes\n"


def test_a_filter_without_getcwd_stops_no_program(box: Bundle) -> None:
    if not box.is_ours:
        pytest.skip("runc 1.1.5 looks where it is after it has loaded the filter")
    box.spec["process"]["noNewPrivileges"] = False
    box.spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}],
    }
    assert box.shell("echo runs") == "runs\n"


def test_a_poststart_hook_that_fails_stops_the_container(our_box: Bundle) -> None:
    # as the specification has it since 1.3
    our_box.spec["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    our_box.spec["process"]["args"] = ["sleep", "1000"]
    our_box.save()
    our_box.ok("create", "--bundle", str(our_box.path), our_box.id)
    done = our_box.call("start", our_box.id)
    assert done.returncode == 1 and "error running poststart hook #0" in done.stderr
    assert our_box.status() == "stopped"


def test_dac_override_lets_a_user_execute_what_is_roots(box: Bundle) -> None:
    program = box.rootfs / "tmp/echo"
    shutil.copy("/bin/busybox", program)
    program.chmod(0o700)
    process = box.spec["process"]
    process["user"] = {"uid": 1000, "gid": 1000}
    held = ["CAP_DAC_OVERRIDE"]
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), held)
    done = box.run("/tmp/echo", "hi")
    assert (done.returncode, done.stdout) == (0, "hi\n"), done
    process["capabilities"] = {}
    done = box.run("/tmp/echo", "hi")
    assert done.returncode != 0 and "permission denied" in done.stderr, done
