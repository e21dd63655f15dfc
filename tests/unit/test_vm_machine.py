"""The machine as data and QEMU's command line for it."""

from __future__ import annotations

import pytest

from nagaya.errors import InvalidArgument
from nagaya.vm.machine import (
    Balloon,
    Drive,
    Machine,
    Memory,
    Nic,
    Port,
    Rng,
    Share,
    Vsock,
    argv,
)


def test_the_whole_command_line() -> None:
    machine = Machine(
        kernel="/k/vmlinux",
        initrd="/k/agent.cpio",
        cmdline="console=ttyS0 quiet",
        memory=Memory(128, path="/t/memory"),
        vcpus=2,
        drives=[
            Drive("d0", "/images/a,b.erofs"),
            Drive("d1", "/c/disk", read_only=False, cache="writeback", throttle={"bps-total": 1000}),
        ],
        nics=[Nic("n0", fd=9, mac="02:00:00:00:00:01"), Nic("n1", tap="tap1", mtu=1400), Nic("n2")],
        ports=[Port("agent", fd=8), Port("more", path="/run/more.sock")],
        shares=[Share("share", "/run/share")],
        balloon=Balloon(),
        rng=Rng(max_bytes=1024, period=1000),
        console="/c/console",
    )
    words = argv(machine, qmp_fd=7, files={"/images/a,b.erofs": [5], "/c/disk": [6, 10]}, incoming=True)
    before = (
        "qemu-system-x86_64 -machine microvm,acpi=on,rtc=on,accel=tcg,memory-backend=ram -cpu max -smp 2"
        " -m 128M -object memory-backend-file,mem-path=/t/memory,id=ram,size=128M,share=off"
        " -nodefaults -no-user-config -display none -no-reboot"
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        " -chardev socket,id=qmp,fd=7 -mon chardev=qmp,mode=control"
        " -kernel /k/vmlinux -initrd /k/agent.cpio -append"
    )
    after = (
        "-chardev file,id=console,path=/c/console -serial chardev:console"
        " -add-fd fd=5,set=5"
        " -drive id=d0,node-name=disk-d0,if=none,format=raw,file.locking=off,readonly=on"
        ",cache=unsafe,discard=unmap,file=/dev/fdset/5"
        " -device virtio-blk-device,drive=d0,id=dev-d0"
        " -add-fd fd=6,set=6 -add-fd fd=10,set=6"
        " -drive id=d1,node-name=disk-d1,if=none,format=raw,file.locking=off,readonly=off"
        ",cache=writeback,discard=unmap,file=/dev/fdset/6,throttling.bps-total=1000"
        " -device virtio-blk-device,drive=d1,id=dev-d1"
        " -netdev tap,id=n0,fd=9 -device virtio-net-device,id=dev-n0,mac=02:00:00:00:00:01,netdev=n0"
        " -netdev tap,id=n1,ifname=tap1,script=no,downscript=no"
        " -device virtio-net-device,id=dev-n1,host_mtu=1400,netdev=n1"
        " -netdev hubport,id=n2,hubid=50 -device virtio-net-device,id=dev-n2,netdev=n2"
        " -device virtio-serial-device,id=serial"
        " -chardev socket,id=agent,fd=8 -device virtserialport,bus=serial.0,chardev=agent,name=agent"
        " -chardev socket,id=more,path=/run/more.sock,server=on,wait=off"
        " -device virtserialport,bus=serial.0,chardev=more,name=more"
        " -fsdev local,id=share,path=/run/share,security_model=passthrough,multidevs=remap"
        " -device virtio-9p-device,fsdev=share,mount_tag=share"
        " -device virtio-balloon-device,id=balloon,deflate-on-oom=on,free-page-reporting=on"
        " -object rng-builtin,id=rng -device virtio-rng-device,rng=rng,max-bytes=1024,period=1000"
        " -incoming defer"
    )
    assert words == [*before.split(), "console=ttyS0 quiet", *after.split()]


def test_a_path_with_a_comma_is_no_list_of_options() -> None:
    machine = Machine(kernel="k", memory=Memory(64), drives=[Drive("d0", "/a,readonly=off")])
    assert any(word.endswith(",file=/a,,readonly=off") for word in argv(machine, qmp_path="/q"))


@pytest.mark.parametrize(
    ("machine", "subject"),
    [
        (Machine(kernel="k", memory=Memory(1)), "memory"),
        (Machine(kernel="k", memory=Memory(128), vcpus=0), "vcpus"),
        (Machine(kernel="k", memory=Memory(128), vcpus=33), "vcpus"),
        (Machine(kernel="k", memory=Memory(128), vsock=Vsock(3, "/v")), "vsock"),
        (Machine(kernel="k", memory=Memory(128), drives=[Drive("a,b", "/x")]), "id"),
        (Machine(kernel="k", memory=Memory(128), drives=[Drive("", "/x")]), "id"),
        (Machine(kernel="k", memory=Memory(128), drives=[Drive("a", "/x"), Drive("a", "/y")]), "id"),
        (Machine(kernel="k", memory=Memory(128), drives=[Drive(f"d{i}", "/x") for i in range(25)]), "drives"),
    ],
)
def test_what_cannot_be(machine: Machine, subject: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        argv(machine, qmp_fd=3)
    assert caught.value.subject == subject
