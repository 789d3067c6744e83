"""Room for signals that arrive together: the alternate stack on which CPython's handlers run once faulthandler is used.

CPython installs its handlers with SA_ONSTACK, and faulthandler sets an alternate stack of about 16 KiB. Signals that
are pending together nest: the kernel pushes the frame of each before the first handler runs, and with the registers of
AVX-512 and AMX a frame has up to 12 KiB (signal(7), sigaltstack(2)). So a handful of signals at once, as a process
group gets them, overflows that stack, and the process dies of SIGSEGV without a word.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

_SIZE: Final = 1 << 19  # each of some 30 signals once, since a handler masks its own; untouched pages cost nothing
_SS_DISABLE: Final = 2


class _Stack(ctypes.Structure):
    """stack_t of <signal.h>."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


def enlarge_signal_stack() -> bool:
    """Replace the calling thread's alternate signal stack, if it has one, by one on which every signal fits.

    Call it after whatever enables faulthandler; it is inherited across fork(2). Returns whether there was one to
    replace. Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    present = _Stack()
    _check(libc.sigaltstack(None, ctypes.byref(present)))
    if present.ss_flags & _SS_DISABLE:
        return False
    memory = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.c_char.from_buffer(memory)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(start))  # the kernel uses it until the process ends
    _check(libc.sigaltstack(ctypes.byref(_Stack(ctypes.addressof(start), 0, _SIZE)), None))
    return True


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
