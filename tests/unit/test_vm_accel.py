"""What is read from /proc/cpuinfo, and what the guest's kernel is told of it."""

from __future__ import annotations

import pytest

from nagaya.vm import accel

CPUINFO = b"processor\t: 0\nflags\t\t: fpu vme %s sse\ncpu MHz\t\t: 2596.144\n"


@pytest.mark.parametrize(
    ("flags", "device", "answer"),
    [(b"vmx", True, True), (b"svm", True, True), (b"vmx", False, False), (b"pni", True, False)],
)
def test_who_may_have_kvm(flags: bytes, device: bool, answer: bool) -> None:
    assert accel.may_have_kvm(CPUINFO % flags, device=device) is answer
    assert not accel.may_have_kvm(b"", device=True)


def test_the_clock_is_told_where_it_cannot_be_found_out() -> None:
    line = accel.cmdline("tcg", "more", cpuinfo=CPUINFO % b"pni").split()
    assert {"tsc_early_khz=2596144", "lpj=5192288", "tsc=reliable", "no_timer_check", "more"} <= set(line)
    assert "tsc" not in accel.cmdline("kvm", cpuinfo=CPUINFO % b"vmx")
    assert "tsc" not in accel.cmdline("tcg", cpuinfo=b"cpu MHz : what\n")


@pytest.mark.parametrize(
    ("cpuinfo", "khz"),
    [
        (b"model name : X CPU @ 2.60GHz\nflags : fpu\ncpu MHz : 800.1\n", 2_600_000),
        (b"model name : X CPU @ 2.60GHz\nflags : hypervisor\ncpu MHz : 2593.9\n", 2_593_900),
        (b"model name : EPYC\ncpu MHz : 3400.5\n\ncpu MHz : 1.0\n", 3_400_500),
        (b"model name : X @ fastGHz\n", 0),
        (b"", 0),
    ],
)
def test_the_speed_of_the_counter(cpuinfo: bytes, khz: int) -> None:
    assert accel.tsc_khz(cpuinfo) == khz
