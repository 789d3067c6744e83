"""What a process asks of the kernel for itself: death signal, subreaper, name, standard streams, more descriptors."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_PDEATHSIG: Final = 2
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_NAME_BYTES: Final = 15
_STDERR: Final = 2


def set_pdeathsig(signum: int) -> None:
    """Have the kernel send `signum` to this process when the *thread* that forked it ends; 0 switches it off.

    Changing credentials clears it (PR_SET_PDEATHSIG(2const)), so set it after `drop_privileges`. A parent that died
    before the call sends nothing: compare getppid() afterwards. Raises OSError.
    """
    _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum))


def get_pdeathsig() -> int:
    """Return the signal set by `set_pdeathsig`, 0 for none. Raises OSError."""
    value = ctypes.c_int()
    _prctl(_PR_GET_PDEATHSIG, ctypes.byref(value))
    return value.value


def strange_descriptors() -> frozenset[int]:
    """Return the descriptors above the standard ones that are open now; empty where /proc does not say (proc(5)).

    Asked before this process opens any of its own, these are what its starter left open, wittingly or not.
    """
    try:
        numbers = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 - names, not paths
    except OSError:
        return frozenset()
    return frozenset(fd for fd in numbers if fd > _STDERR and _is_open(fd))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:  # the listing's own descriptor
        return False
    return True


def set_subreaper() -> None:
    """Become the parent of every descendant whose own parent dies (PR_SET_CHILD_SUBREAPER(2const)). Raises OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def set_title(text: str) -> None:
    """Set the calling thread's name, in the main thread the process's `comm` as ps and top show it.

    The kernel keeps 15 bytes. The command line is left as the operator typed it. Raises OSError.
    """
    name = text.encode()[:_NAME_BYTES].decode(errors="ignore").encode()
    _prctl(_PR_SET_NAME, ctypes.c_char_p(name))


def _prctl(option: int, argument: object) -> None:
    # prctl(2) is variadic and reads unsigned longs: what is left out would be whatever is in the registers.
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(option), argument, zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_standard_streams() -> None:
    """Put /dev/null in place of each standard stream that is closed, and give `sys` an object for it.

    Otherwise the next socket opened gets its number, and what is logged goes to a client. Call it before anything is
    opened. Raises OSError.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is `fd`
            os.set_inheritable(null, True)  # noqa: FBT003 - its only signature
            setattr(sys, name, os.fdopen(null, "r" if fd == 0 else "w", closefd=False))


def allow_core() -> None:
    """Let this process leave a core file: raise the soft limit to the hard one, and become dumpable again.

    A process that changed its credentials is not dumpable (PR_SET_DUMPABLE(2const)): call it after `drop_privileges`.
    Raises OSError.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    _prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1))


def raise_nofile_limit() -> int:
    """Raise the soft limit of open descriptors to the hard one; return the soft limit that holds afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # A hard limit above fs.nr_open cannot be used; the soft one still holds.
        return soft
    return hard
