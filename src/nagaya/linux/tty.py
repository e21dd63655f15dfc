"""Pseudoterminals (pty(7), ioctl_tty(2)) by file descriptor alone: the slave is never opened by a
path, which an image could have replaced (CVE-2025-52565)."""

from __future__ import annotations

from _struct import pack, unpack

from nagaya.errors import FailedPrecondition
from nagaya.linux import os
from nagaya.linux.ffi import buffer, syscall
from nagaya.linux.paths import open_in_root

TIOCGWINSZ = 0x5413
TIOCSWINSZ = 0x5414
TIOCSCTTY = 0x540E
TIOCGPTN = 0x80045430
TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
TCGETS = 0x5401
TCSETSW = 0x5403
_TERMIOS_SIZE = 36  # struct termios of the kernel: 4 flags, line, 19 control characters


def open_master(rootfd: int, path: str = "dev/pts/ptmx") -> int:
    """Open a new pty master of the devpts mounted in the root. Raises FailedPrecondition when path
    is not a pty multiplexer."""
    fd = open_in_root(rootfd, path, os.O_RDWR | os.O_NOCTTY)
    if os.fstat(fd).st_rdev != os.makedev(5, 2):
        os.close(fd)
        raise FailedPrecondition("not a pseudoterminal multiplexer", subject=path, step=f"open {path}")
    return fd


def open_peer(master: int) -> int:
    """Unlock the slave and open it (ioctl_tty(2), TIOCGPTPEER)."""
    syscall("ioctl", master, TIOCSPTLCK, pack("=i", 0), subject="TIOCSPTLCK")
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    return syscall("ioctl", master, TIOCGPTPEER, flags, subject="TIOCGPTPEER")


def slave_number(master: int) -> int:
    """N of /dev/pts/N."""
    data = buffer(4)
    syscall("ioctl", master, TIOCGPTN, data, subject="TIOCGPTN")
    number: int = unpack("=i", bytes(data))[0]
    return number


def set_size(fd: int, height: int, width: int) -> None:
    """Set the window size; the foreground process group gets SIGWINCH."""
    syscall("ioctl", fd, TIOCSWINSZ, pack("=4H", height, width, 0, 0), subject="TIOCSWINSZ")


def get_size(fd: int) -> tuple[int, int]:
    """(height, width) of a terminal."""
    data = buffer(8)
    syscall("ioctl", fd, TIOCGWINSZ, data, subject="TIOCGWINSZ")
    height, width = unpack("=2H", bytes(data)[:4])
    return height, width


def set_controlling(fd: int) -> None:
    """Make the terminal the controlling one of this session leader."""
    syscall("ioctl", fd, TIOCSCTTY, 0, subject="TIOCSCTTY")


def make_raw(fd: int) -> bytes:
    """cfmakeraw(3) but for the output: "\n" still moves to the line's begin, as the one who relays sends it
    (see `plain_newlines`); returns the former settings for `restore`."""
    data = buffer(_TERMIOS_SIZE)
    syscall("ioctl", fd, TCGETS, data, subject="TCGETS")
    former = bytes(data)
    iflag, oflag, cflag, lflag = unpack("=4I", former[:16])
    iflag &= ~0o2753  # IGNBRK BRKINT PARMRK ISTRIP INLCR IGNCR ICRNL IXON
    lflag &= ~0o100113  # IEXTEN ECHONL ECHO ICANON ISIG
    cflag = cflag & ~0o460 | 0o60  # PARENB and CSIZE off; CS8
    control = bytearray(former[17:])
    control[5], control[6] = 0, 1  # VTIME, VMIN
    words = pack("=4I", *(word & 0xFFFFFFFF for word in (iflag, oflag, cflag, lflag)))
    syscall("ioctl", fd, TCSETSW, words + former[16:17] + bytes(control), subject="TCSETSW")
    return former


def plain_newlines(fd: int) -> None:
    """Clear ONLCR: what a program prints comes out of the master as it was printed."""
    data = buffer(_TERMIOS_SIZE)
    syscall("ioctl", fd, TCGETS, data, subject="TCGETS")
    words = bytes(data)
    oflag = unpack("=I", words[4:8])[0] & ~0o4
    syscall("ioctl", fd, TCSETSW, words[:4] + pack("=I", oflag) + words[8:], subject="TCSETSW")


def restore(fd: int, settings: bytes) -> None:
    """Put back what `make_raw` returned."""
    syscall("ioctl", fd, TCSETSW, settings, subject="TCSETSW")
