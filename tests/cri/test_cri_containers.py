"""Containers of pods over the socket: life, logs, users, mounts, limits, and what is refused."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from grpclib import GRPCError, Status
from house import wait_for
from kubelet import Kubelet, Node, log_lines, refused

from nagaya.api.cri import runtime_pb2 as cri

pytestmark = pytest.mark.root


def test_a_container_from_its_beginning_to_its_end(node: Node, pod: str) -> None:
    kubelet = node.kubelet
    config = node.container_config(
        "sh", "-c", "exec sleep 600", labels={"a": "b"}, annotations={"n": "m"}, working_dir="/tmp"
    )
    container = node.create(pod, config=config)
    status = node.status(container)
    assert status.state == cri.CONTAINER_CREATED
    assert (status.metadata, dict(status.labels), dict(status.annotations)) == (
        config.metadata,
        {"a": "b"},
        {"n": "m"},
    )
    assert status.image.image == "docker.io/nagaya/busybox:latest"
    assert status.image_ref.startswith("docker.io/nagaya/busybox@sha256:")
    assert status.image_id.startswith("sha256:")
    assert (status.started_at, status.finished_at) == (0, 0)
    kubelet.StartContainer(container_id=container)
    status = node.status(container)
    assert status.state == cri.CONTAINER_RUNNING
    assert status.created_at < status.started_at
    assert node.exec(container, "pwd") == "/tmp\n"
    kubelet.StartContainer(container_id=container)  # who gave up waiting asks again
    assert node.status(container).started_at == status.started_at
    kubelet.StopContainer(container_id=container, timeout=0)
    status = node.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 137, "Error")
    assert status.finished_at > status.started_at
    refused(lambda: kubelet.StartContainer(container_id=container), Status.FAILED_PRECONDITION, "exited")
    for _ in range(2):
        kubelet.StopContainer(container_id=container, timeout=1)
    for _ in range(2):
        kubelet.RemoveContainer(container_id=container)
    refused(lambda: node.status(container), Status.NOT_FOUND, "container_id")


def test_the_verbose_status_has_the_spec(node: Node, pod: str) -> None:
    container = node.start(pod)
    found = node.kubelet.ContainerStatus(container_id=container, verbose=True)
    assert '"ociVersion"' in found.info["info"]
    assert not node.kubelet.ContainerStatus(container_id=container).info


def test_how_it_ended_is_told(node: Node, pod: str) -> None:
    well, ill = node.start(pod, "true"), node.start(pod, "sh", "-c", "exit 7")
    assert (node.ended(well).exit_code, node.ended(well).reason) == (0, "Completed")
    assert (node.ended(ill).exit_code, node.ended(ill).reason) == (7, "Error")


def test_a_start_that_fails_is_an_end(node: Node, pod: str) -> None:
    container = node.create(pod, "/no/such/program")
    with pytest.raises(Exception, match="/no/such/program"):
        node.kubelet.StartContainer(container_id=container)
    status = node.status(container)
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "StartError")
    assert status.exit_code == 127
    refused(lambda: node.kubelet.StartContainer(container_id=container), Status.FAILED_PRECONDITION, "exited")


def test_the_stop_signal_is_the_one_asked_for(node: Node, pod: str) -> None:
    script = "trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    container = node.start(pod, "sh", "-c", script, stop_signal=cri.SIGNAL_SIGUSR1)
    assert node.status(container).stop_signal == cri.SIGNAL_SIGUSR1
    log = Path(node.status(container).log_path)
    wait_for(lambda: "ready" in log.read_text(), 10, "the trap")
    node.kubelet.StopContainer(container_id=container, timeout=20)
    assert node.status(container).exit_code == 3
    plain = node.create(pod)
    assert node.status(plain).stop_signal == cri.SIGNAL_SIGTERM


def test_lists_are_filtered(node: Node, pod: str) -> None:
    kubelet = node.kubelet
    other = node.run_pod()
    first = node.start(pod, labels={"which": "first"})
    second = node.create(other, labels={"which": "second"})

    def ids(**fields: object) -> set[str]:
        wanted = cri.ContainerFilter(**fields)  # type: ignore[arg-type]
        streamed = kubelet.StreamContainers(filter=wanted)
        listed = {c.id for c in kubelet.ListContainers(filter=wanted).containers}
        assert {c.id for message in streamed for c in message.containers} == listed
        return listed

    assert ids(pod_sandbox_id=pod) == {first}
    assert ids(id=second[:12]) == {second}
    assert ids(label_selector={"which": "second"}) == {second}
    assert second in ids(state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED))
    assert first not in ids(state=cri.ContainerStateValue(state=cri.CONTAINER_CREATED))
    assert ids(label_selector={"which": "third"}) == set()
    kubelet.RemovePodSandbox(pod_sandbox_id=other)


def test_the_same_request_again_is_the_same_container(node: Node, pod: str) -> None:
    config = node.container_config()
    container = node.create(pod, config=config)
    assert node.create(pod, config=config) == container
    config.labels["x"] = "y"
    refused(lambda: node.create(pod, config=config), Status.ALREADY_EXISTS, "attempt 0")
    config.metadata.attempt = 1
    assert node.create(pod, config=config) != container


def test_a_pod_that_was_stopped_takes_no_container(node: Node) -> None:
    pod = node.run_pod()
    container = node.create(pod)
    node.kubelet.StopPodSandbox(pod_sandbox_id=pod)
    refused(lambda: node.create(pod), Status.FAILED_PRECONDITION, "not ready")
    refused(
        lambda: node.kubelet.StartContainer(container_id=container), Status.FAILED_PRECONDITION, "not ready"
    )
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    refused(lambda: node.create(pod), Status.NOT_FOUND, "pod_sandbox_id")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda c: c.metadata.ClearField("name"), Status.INVALID_ARGUMENT, "config.metadata.name"),
        (lambda c: c.image.ClearField("image"), Status.INVALID_ARGUMENT, "config.image.image"),
        (lambda c: setattr(c.image, "image", "no/such:image"), Status.NOT_FOUND, "config.image.image"),
        (lambda c: setattr(c, "working_dir", "tmp"), Status.INVALID_ARGUMENT, "config.working_dir"),
        (lambda c: setattr(c, "stdin_once", True), Status.INVALID_ARGUMENT, "config.stdin_once"),
        (lambda c: setattr(c, "log_path", "../../out"), Status.INVALID_ARGUMENT, "config.log_path"),
        (lambda c: c.envs.add(key="A=B", value=b"x"), Status.INVALID_ARGUMENT, "config.envs[0].key"),
        (lambda c: c.envs.add(key="A", value=b"\xff"), Status.INVALID_ARGUMENT, "config.envs[0].value"),
        (lambda c: c.envs.add(key="A", value=b"x" * 2_000_000), Status.INVALID_ARGUMENT, "config.envs"),
        (lambda c: c.mounts.add(host_path="/tmp"), Status.INVALID_ARGUMENT, "config.mounts[0]"),
        (lambda c: c.mounts.add(container_path="/x", host_path="y"), Status.INVALID_ARGUMENT, "host_path"),
        (lambda c: c.mounts.add(container_path="/", host_path="/tmp"), Status.INVALID_ARGUMENT, "mounts[0]"),
        (
            lambda c: c.mounts.add(container_path="/x", host_path="/tmp", recursive_read_only=True),
            Status.INVALID_ARGUMENT,
            "recursive_read_only",
        ),
        (
            lambda c: c.mounts.add(container_path="/x", host_path="/tmp", mount_options=["ro"]),
            Status.INVALID_ARGUMENT,
            "mount_options",
        ),
        (
            lambda c: c.mounts.add(container_path="/x", host_path="/tmp", propagation=9),
            Status.INVALID_ARGUMENT,
            "config.mounts[0].propagation",
        ),
        (
            lambda c: setattr(c.linux.security_context.run_as_group, "value", 5),
            Status.INVALID_ARGUMENT,
            "run_as_group",
        ),
        (
            lambda c: setattr(c.linux.security_context.run_as_user, "value", -5),
            Status.INVALID_ARGUMENT,
            "run_as_user",
        ),
        (
            lambda c: setattr(c.linux.security_context, "run_as_username", "nobodyhere"),
            Status.INVALID_ARGUMENT,
            "nobodyhere",
        ),
        (
            lambda c: c.linux.security_context.capabilities.add_capabilities.append("FLYING"),
            Status.INVALID_ARGUMENT,
            "CAP_FLYING",
        ),
        (
            lambda c: c.linux.security_context.seccomp.MergeFrom(
                cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="/no/such.json")
            ),
            Status.INVALID_ARGUMENT,
            "/no/such.json",
        ),
        (
            lambda c: c.linux.security_context.apparmor.MergeFrom(
                cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="x")
            ),
            Status.FAILED_PRECONDITION,
            "no AppArmor",
        ),
        (lambda c: c.CDI_devices.add(name="vendor.com/x=y"), Status.INVALID_ARGUMENT, "vendor.com/x=y"),
        (
            lambda c: c.devices.add(host_path="null", container_path="/dev/x"),
            Status.INVALID_ARGUMENT,
            "devices[0]",
        ),
        (
            lambda c: setattr(c.linux.resources, "oom_score_adj", 2000),
            Status.INVALID_ARGUMENT,
            "oom_score_adj",
        ),
        (
            lambda c: setattr(c.linux.resources, "memory_limit_in_bytes", -7),
            Status.INVALID_ARGUMENT,
            "memory_limit_in_bytes",
        ),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(
    node: Node, pod: str, change: object, status: Status, words: str
) -> None:
    config = node.container_config()
    assert callable(change)
    change(config)
    refused(lambda: node.create(pod, config=config), status, words)
    assert not node.kubelet.ListContainers(filter=cri.ContainerFilter(pod_sandbox_id=pod)).containers
    assert not list((node.house.root / "containers").iterdir())


def test_the_log_is_as_kubelets_read_it(node: Node, pod: str) -> None:
    long = "x" * 20000
    script = f"echo one; echo two >&2; printf '{long}\\n'; printf rest"
    container = node.start(pod, "sh", "-c", script)
    status = node.ended(container)
    assert status.log_path.startswith(str(node.logs))
    records = [line.split(" ", 3) for line in Path(status.log_path).read_text().splitlines()]
    assert all(time.endswith("Z") and "T" in time for time, *_ in records)
    assert ["stdout", "F", "one"] in [r[1:] for r in records]
    assert ["stderr", "F", "two"] in [r[1:] for r in records]
    out = [(tag, text) for _, stream, tag, text in records if stream == "stdout"][1:]
    assert [tag for tag, _ in out] == ["P", "F", "P"]
    assert out[0][1] + out[1][1] == long
    assert out[2][1] == "rest"


def test_a_log_that_was_renamed_goes_on_in_a_new_file(node: Node, pod: str) -> None:
    container = node.start(pod, "sh", "-c", "while :; do echo tick; sleep 0.02; done")
    log = Path(node.status(container).log_path)
    wait_for(lambda: log.exists() and "tick" in log.read_text(), 10, "the first line")
    old = log.with_suffix(".old")
    log.rename(old)
    node.kubelet.ReopenContainerLog(container_id=container)
    assert log.exists()
    wait_for(lambda: "tick" in log.read_text(), 10, "a line in the new file")
    before = old.read_text()
    wait_for(lambda: log.read_text().count("tick") > 5, 10, "more lines")
    assert old.read_text() == before
    node.kubelet.StopContainer(container_id=container, timeout=0)
    refused(lambda: node.kubelet.ReopenContainerLog(container_id=container), Status.FAILED_PRECONDITION)


def test_commands_and_their_output(node: Node, pod: str) -> None:
    kubelet = node.kubelet
    container = node.start(pod, envs=[cri.KeyValue(key="GREETING", value=b"hello there")])
    found = kubelet.ExecSync(
        container_id=container, cmd=["sh", "-c", "echo $GREETING; echo no >&2; exit 5"], timeout=10
    )
    assert (found.stdout, found.stderr, found.exit_code) == (b"hello there\n", b"no\n", 5)
    large = kubelet.ExecSync(container_id=container, cmd=["dd", "if=/dev/zero", "bs=1M", "count=4"])
    assert len(large.stdout) == 4 << 20
    refused(
        lambda: kubelet.ExecSync(container_id=container, cmd=["sleep", "99"], timeout=1),
        Status.DEADLINE_EXCEEDED,
        "longer than 1 s",
    )
    assert "sleep 99" not in node.exec(container, "ps", "-o", "args")
    created = node.create(pod)
    for where, cmd, timeout, status, word in (
        (container, ["yes"], 0, Status.RESOURCE_EXHAUSTED, "output"),
        (container, [], 0, Status.INVALID_ARGUMENT, "cmd"),
        (container, ["true"], -1, Status.INVALID_ARGUMENT, "timeout"),
        (container, ["/nope"], 0, Status.UNKNOWN, "/nope"),
        (created, ["true"], 0, Status.FAILED_PRECONDITION, "running"),
    ):
        request = cri.ExecSyncRequest(container_id=where, cmd=cmd, timeout=timeout)
        refused(functools.partial(kubelet.ExecSync, request), status, word)


def test_a_command_is_executed_or_says_why_not(node: Node, pod: str) -> None:
    made, ask = node.start(pod), node.kubelet.ExecSync
    # a session of its own, and no descriptor but the three (and that of the directory it reads)
    assert node.exec(
        made, "sh", "-c", "[ $$ = $(cut -d' ' -f6 /proc/$$/stat) ]; ls /proc/self/fd"
    ).split() == [
        "0",
        "1",
        "2",
        "3",
    ]
    for text, mode in (("#!/no/such\n", "755"), ("\\177nothing", "755"), ("#!/bin/sh\n", "644")):
        node.exec(made, "sh", "-c", f"printf '{text}' > /tmp/program; chmod {mode} /tmp/program")
        refused(lambda: ask(container_id=made, cmd=["/tmp/program"]), Status.UNKNOWN, "/tmp/program")
    assert node.exec(made, "echo", "on") == "on\n"
    with_filter = node.container_config()
    with_filter.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    filtered = node.start(pod, config=with_filter)
    assert node.exec(filtered, "grep", "Seccomp:", "/proc/self/status") == "Seccomp:\t2\n"


def test_commands_are_each_caller_s_own_and_end_with_him(node: Node, pod: str) -> None:
    made = node.start(pod)
    ask = node.kubelet.method("ExecSync")
    twice = cri.ExecSyncRequest(container_id=made, cmd=["sh", "-c", "echo $$; sleep 0.3"])
    both = [node.kubelet.begin(ask(twice)) for _ in range(2)]
    assert len({found.result(20).stdout for found in both}) == 2
    forever = node.kubelet.begin(ask(cri.ExecSyncRequest(container_id=made, cmd=["sleep", "4321"])))
    running = "ps -o args | grep -c '^sleep 4321' || true"
    wait_for(lambda: node.exec(made, "sh", "-c", running) == "1\n", 20, "the command")
    forever.cancel()
    wait_for(lambda: node.exec(made, "sh", "-c", running) == "0\n", 20, "its end")


def test_without_input_it_has_its_own_null(node: Node, pod: str) -> None:
    """Not the host's, whose mount is not in there: nobody could open it again, nor criu dump it."""
    mount = "id=$(sed -n 's/^mnt_id:[^0-9]*//p' /proc/self/fdinfo/0)"
    assert node.run(pod, "sh", "-c", f'{mount}; grep -c "^$id " /proc/self/mountinfo') == "1\n"


def identity(node: Node, pod: str, **security: object) -> str:
    config = node.container_config("sh", "-c", "id -u; id -g; id -G")
    config.linux.security_context.MergeFrom(cri.LinuxContainerSecurityContext(**security))  # type: ignore[arg-type]
    return " / ".join(node.run(pod, config=config).splitlines())


def test_users_and_groups(node: Node, pod: str) -> None:
    uid = cri.Int64Value(value=1234)
    assert identity(node, pod) == "0 / 0 / 0"
    assert identity(node, pod, run_as_user=uid) == "1234 / 0 / 0"
    assert identity(node, pod, run_as_user=uid, run_as_group=cri.Int64Value(value=55)) == "1234 / 55 / 55"
    assert identity(node, pod, run_as_username="root", supplemental_groups=[7, 8]) == "0 / 0 / 0 7 8"
    strict = cri.Strict
    assert identity(node, pod, supplemental_groups=[9], supplemental_groups_policy=strict) == "0 / 0 / 0 9"
    config = node.container_config()
    config.linux.security_context.run_as_user.value = 77
    config.linux.security_context.supplemental_groups.append(78)
    user = node.status(node.create(pod, config=config)).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (77, 0, [0, 78])


def status_of(node: Node, pod: str, **security: object) -> dict[str, str]:
    config = node.container_config("cat", "/proc/self/status")
    config.linux.security_context.MergeFrom(cri.LinuxContainerSecurityContext(**security))  # type: ignore[arg-type]
    lines = node.run(pod, config=config).splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_capabilities_seccomp_and_privileges(node: Node, pod: str) -> None:
    profile = cri.SecurityProfile
    plain = status_of(node, pod)
    assert (plain["Seccomp"], plain["NoNewPrivs"]) == ("0", "0")
    default = status_of(node, pod, seccomp=profile(profile_type=profile.RuntimeDefault), no_new_privs=True)
    assert (default["Seccomp"], default["NoNewPrivs"]) == ("2", "1")
    net_admin = 1 << 12
    assert not int(plain["CapEff"], 16) & net_admin
    added = status_of(node, pod, capabilities=cri.Capability(add_capabilities=["NET_ADMIN"]))
    assert int(added["CapEff"], 16) & net_admin
    dropped = status_of(node, pod, capabilities=cri.Capability(drop_capabilities=["ALL"]))
    assert int(dropped["CapBnd"], 16) == 0
    user = cri.Int64Value(value=1000)
    ambient = cri.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"])
    found = status_of(node, pod, run_as_user=user, capabilities=ambient)
    assert int(found["CapAmb"], 16) == int(found["CapEff"], 16) == 1 << 10
    whole = status_of(node, pod, privileged=True)
    assert int(whole["CapBnd"], 16) == int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if "CapBnd" in line).split()[
            1
        ],
        16,
    )


def test_a_profile_of_the_node(node: Node, pod: str) -> None:
    profile = node.house.base / "seccomp.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW",'
        ' "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    config = node.container_config("sh", "-c", "mkdir /tmp/x 2>&1 || echo refused")
    config.linux.security_context.seccomp.profile_type = cri.SecurityProfile.Localhost
    config.linux.security_context.seccomp.localhost_ref = str(profile)
    assert node.run(pod, config=config).splitlines()[-1] == "refused"


def test_paths_are_masked_and_read_only_as_asked(node: Node, pod: str) -> None:
    config = node.container_config(
        "sh",
        "-c",
        "cat /proc/version 2>/dev/null | wc -c; echo 1 > /proc/sys/net/ipv4/ip_forward || echo refused",
    )
    config.linux.security_context.masked_paths.append("/proc/version")
    config.linux.security_context.readonly_paths.append("/proc/sys")
    assert node.run(pod, config=config).splitlines() == ["0", "refused"]
    config = node.container_config("sh", "-c", "echo 1 > /file && echo written; cat /proc/version | wc -l")
    assert node.run(pod, config=config).splitlines() == ["written", "1"]
    config = node.container_config(
        "sh", "-c", "echo 1 > /file || echo refused; echo 1 > /etc/hosts || echo no"
    )
    config.linux.security_context.readonly_rootfs = True
    assert node.run(pod, config=config).splitlines() == ["refused", "no"]


def test_mounts(node: Node, pod: str) -> None:
    source = node.house.base / "mount"
    (source / "inner").mkdir(parents=True)
    (source / "file").write_text("content\n")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source / "inner"], check=True)
    try:
        mounts = [
            cri.Mount(container_path="/rw", host_path=str(source)),
            cri.Mount(container_path="/ro", host_path=str(source), readonly=True),
            cri.Mount(container_path="/rro", host_path=str(source), readonly=True, recursive_read_only=True),
            cri.Mount(
                container_path="/new", host_path=str(source / "made"), mount_options=["noexec", "nosuid"]
            ),
            cri.Mount(container_path="/etc/hosts", host_path=str(source / "file")),
        ]
        script = (
            "cat /rw/file /etc/hosts;"
            " for d in rw ro ro/inner rro/inner; do touch /$d/x 2>/dev/null && echo $d; done;"
            " grep ' /new ' /proc/self/mounts | cut -d' ' -f4"
        )
        container = node.start(pod, "sh", "-c", script, mounts=mounts)
        lines = node.output(container).splitlines()
        assert lines[:4] == ["content", "content", "rw", "ro/inner"]
        assert {"noexec", "nosuid"} <= set(lines[4].split(","))
        assert list(node.status(container).mounts) == mounts
        assert (source / "made").is_dir()
    finally:
        subprocess.run(["umount", source / "inner"], check=True)


def test_mounts_that_come_later_are_seen_where_that_was_asked(node: Node, pod: str) -> None:
    source = node.house.base / "propagated"
    (source / "inner").mkdir(parents=True)
    subprocess.run(["mount", "--bind", source, source], check=True)
    try:
        subprocess.run(["mount", "--make-private", source], check=True)
        asked = [
            cri.Mount(
                container_path="/there", host_path=str(source), propagation=cri.PROPAGATION_HOST_TO_CONTAINER
            )
        ]
        container = node.create(pod, mounts=asked)
        refused(
            lambda: node.kubelet.StartContainer(container_id=container),
            Status.FAILED_PRECONDITION,
            "host_path",
        )
        subprocess.run(["mount", "--make-shared", source], check=True)
        container = node.start(pod, mounts=asked)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source / "inner"], check=True)
        assert "/there/inner" in node.exec(container, "cat", "/proc/self/mounts")
        node.kubelet.RemoveContainer(container_id=container)
        subprocess.run(["umount", source / "inner"], check=True)
    finally:
        subprocess.run(["umount", source], check=True)


def test_an_image_is_mounted_and_a_part_of_one(node: Node, pod: str) -> None:
    image = cri.ImageSpec(image="nagaya/busybox")
    mounts = [
        cri.Mount(container_path="/whole", image=image, readonly=True),
        cri.Mount(container_path="/part", image=image, image_sub_path="bin", readonly=True),
    ]
    script = (
        "cmp /bin/busybox /whole/bin/busybox && cmp /bin/busybox /part/busybox && ! touch /part/x && echo ok"
    )
    container = node.start(pod, "sh", "-c", script, mounts=mounts)
    assert node.output(container) == "ok\n"
    shown = node.status(container).mounts
    assert {m.image.image_ref for m in shown} == {node.status(container).image_id}
    for mount, status, word in (
        (cri.Mount(image=image, image_sub_path="no/such", readonly=True), Status.INVALID_ARGUMENT, "no/such"),
        (cri.Mount(image=image), Status.INVALID_ARGUMENT, "config.mounts[0].readonly"),
        (
            cri.Mount(image=cri.ImageSpec(image="un/known"), readonly=True),
            Status.NOT_FOUND,
            "config.mounts[0].image",
        ),
    ):
        mount.container_path = "/x"
        refused(functools.partial(node.create, pod, mounts=[mount]), status, word)


def test_devices(node: Node, pod: str) -> None:
    devices = [cri.Device(host_path="/dev/full", container_path="/dev/mine", permissions="rw")]
    script = "echo x > /dev/mine; test -c /dev/mine && echo there"
    container = node.start(pod, "sh", "-c", script, devices=devices)
    assert node.output(container) == "there\n"
    assert "No space left" in Path(node.status(container).log_path).read_text()


def test_cdi_devices(node: Node, pod: str) -> None:
    specs = node.house.base / "cdi"
    specs.mkdir()
    edits = {"env": ["FROM_CDI=yes"], "deviceNodes": [{"path": "/dev/cdi", "hostPath": "/dev/zero"}]}
    kind = {"cdiVersion": "0.6.0", "kind": "example.com/class"}
    document = {**kind, "devices": [{"name": "one", "containerEdits": edits}]}
    (specs / "example.json").write_text(json.dumps(document))
    devices = [cri.CDIDevice(name="example.com/class=one")]
    script = "echo $FROM_CDI; head -c 3 /dev/cdi | wc -c"
    assert node.run(pod, "sh", "-c", script, CDI_devices=devices).split() == ["yes", "3"]


def test_limits_are_set_and_changed(node: Node, pod: str) -> None:
    config = node.container_config()
    config.linux.resources.MergeFrom(
        cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_quota=20000, cpu_period=100000)
    )
    container = node.start(pod, config=config)

    def limit() -> int:
        (found,) = Path("/sys/fs/cgroup/memory").rglob(f"*{container}/memory.limit_in_bytes")
        return int(found.read_text())

    assert limit() == 64 << 20
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
    node.kubelet.UpdateContainerResources(container_id=container, linux=resources)
    assert limit() == 96 << 20
    shown = node.status(container).resources.linux
    assert (shown.memory_limit_in_bytes, shown.cpu_quota) == (96 << 20, 20000)
    refused(
        lambda: node.kubelet.UpdateContainerResources(
            container_id=container, linux=cri.LinuxContainerResources(oom_score_adj=5000)
        ),
        Status.INVALID_ARGUMENT,
        "oom_score_adj",
    )
    refused(
        lambda: node.kubelet.UpdateContainerResources(container_id=container),
        Status.INVALID_ARGUMENT,
        "linux",
    )
    node.kubelet.StopContainer(container_id=container, timeout=0)
    refused(
        lambda: node.kubelet.UpdateContainerResources(container_id=container, linux=resources),
        Status.FAILED_PRECONDITION,
        "ended",
    )


def test_no_huge_pages_are_no_limit_where_none_can_be_limited(node: Node, pod: str) -> None:
    mounted = any(p.name == "hugetlb" for p in Path("/sys/fs/cgroup").iterdir())
    config = node.container_config("echo", "well")
    for size in ("2MB", "1GB"):  # as kubelets ask in any case
        config.linux.resources.hugepage_limits.add(page_size=size, limit=0)
    assert node.run(pod, config=config) == "well\n"
    running = node.start(pod)
    node.kubelet.UpdateContainerResources(container_id=running, linux=config.linux.resources)
    if not mounted:
        config = node.container_config()
        config.linux.resources.hugepage_limits.add(page_size="2MB", limit=2 << 20)
        made = node.create(pod, config=config)
        start = node.kubelet.StartContainer
        refused(lambda: start(container_id=made), Status.FAILED_PRECONDITION, "hugetlb")


def test_a_container_that_needs_more_memory_than_it_has_is_told_from_others(node: Node, pod: str) -> None:
    config = node.container_config("sh", "-c", "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done")
    config.linux.resources.memory_limit_in_bytes = 16 << 20
    status = node.ended(node.start(pod, config=config))
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


def test_a_container_looks_at_another_s_processes(node: Node, pod: str) -> None:
    target = node.start(pod, "sleep", "4242")
    config = node.container_config("ps", "-o", "args")
    config.linux.security_context.namespace_options.pid = cri.TARGET
    config.linux.security_context.namespace_options.target_id = target
    assert "sleep 4242" in node.run(pod, config=config)
    config = node.container_config()
    config.linux.security_context.namespace_options.pid = cri.TARGET
    config.linux.security_context.namespace_options.target_id = "0123"
    container = node.create(pod, config=config)
    refused(lambda: node.kubelet.StartContainer(container_id=container), Status.INVALID_ARGUMENT, "target_id")


def test_another_runtime_by_its_handler(node: Node) -> None:
    pod = node.run_pod(handler="runc")
    assert node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.runtime_handler == "runc"
    container = node.start(pod)
    assert node.exec(container, "hostname") == node.exec(container, "cat", "/etc/hostname")
    node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)


@pytest.mark.skipif(shutil.which("runsc") is None, reason="gVisor is not installed")
def test_a_sandboxed_runtime_by_its_handler() -> None:
    # without KVM; with the pod's network as the host's kernel has it, which Debian's cannot take over on all
    runsc = f"{shutil.which('runsc')} --platform=ptrace"
    config = f'[runtimes]\nrunsc = "{runsc} --network=host"\nown-network = "{runsc}"\n'
    with Node(config=config) as node:
        pod = node.run_pod(node.pod_config(hostname="inside"), handler="runsc")
        container = node.start(pod, "sh", "-c", "echo up; trap 'exit 7' TERM; while :; do sleep 0.1; done")
        assert "Starting gVisor" in node.exec(container, "dmesg")
        assert node.exec(container, "hostname") == "inside\n"
        address = node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.network.ip
        assert address in node.exec(container, "cat", "/etc/hosts")
        failed = node.kubelet.ExecSync(container_id=container, cmd=["sh", "-c", "echo bad >&2; exit 3"])
        assert (failed.exit_code, failed.stderr) == (3, b"bad\n")
        node.kubelet.StopContainer(container_id=container, timeout=20)
        ended = node.ended(container)
        assert ended.exit_code == 7
        assert list(log_lines(Path(ended.log_path).read_text().splitlines(), "stdout")) == ["up"]
        node.kubelet.RemovePodSandbox(pod_sandbox_id=pod)
        second = node.run_pod(handler="own-network")
        made = node.create(second)
        with suppress(GRPCError):  # after `create` went well: what it made is taken away
            node.kubelet.StartContainer(container_id=made)
        node.kubelet.RemovePodSandbox(pod_sandbox_id=second)


def test_pods_and_containers_outlive_the_daemon(node: Node) -> None:
    pod = node.run_pod()
    shared = node.pod_config()
    shared.linux.security_context.namespace_options.pid = cri.POD
    second = node.run_pod(shared)
    container, doomed = node.start(pod), node.start(second)
    address = node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status.network.ip
    node.house.kill_daemon()
    node.restart()
    status = node.kubelet.PodSandboxStatus(pod_sandbox_id=pod).status
    assert (status.state, status.network.ip) == (cri.SANDBOX_READY, address)
    assert node.status(container).state == cri.CONTAINER_RUNNING
    assert node.exec(container, "echo", "here") == "here\n"
    assert node.run(pod, "echo", "and a new one") == "and a new one\n"
    assert node.status(doomed).state == cri.CONTAINER_RUNNING
    for made in (pod, second):
        node.kubelet.RemovePodSandbox(pod_sandbox_id=made)


def test_events_come_as_things_happen(node: Node, kubelet: Kubelet) -> None:
    watch = kubelet.method("GetContainerEvents")
    seen: list[cri.ContainerEventResponse] = []

    subscribed = threading.Event()

    async def listen() -> None:
        async with watch.open() as stream:
            await stream.send_message(cri.GetEventsRequest(), end=True)
            await stream.recv_initial_metadata()
            subscribed.set()
            async for event in stream:
                seen.append(event)

    task = kubelet.begin(listen())
    assert subscribed.wait(10)
    pod = node.run_pod()
    container = node.start(pod, "true")
    node.ended(container)
    kubelet.RemovePodSandbox(pod_sandbox_id=pod)
    wanted = [
        (pod, cri.CONTAINER_STARTED_EVENT),
        (container, cri.CONTAINER_CREATED_EVENT),
        (container, cri.CONTAINER_STARTED_EVENT),
        (container, cri.CONTAINER_STOPPED_EVENT),
        (pod, cri.CONTAINER_STOPPED_EVENT),
        (container, cri.CONTAINER_DELETED_EVENT),
        (pod, cri.CONTAINER_DELETED_EVENT),
    ]
    wait_for(lambda: len(seen) >= len(wanted), 10, "the events")
    task.cancel()
    assert [(e.container_id, e.container_event_type) for e in seen] == wanted
    assert all(e.created_at for e in seen)
    assert seen[2].pod_sandbox_status.id == pod
    assert [c.id for c in seen[2].containers_statuses] == [container]
