"""The envelope in which an arbiter's state passes execve(2), and the way back should the new program fail.

Theory of operation. The arbiter becomes another program in the same process: pid, children, file locks and every
descriptor that is not close-on-exec stay. What is only in its memory goes as JSON into a memfd, whose number the new
program finds in `VARIABLE`. Rules:

- The signal mask is part of the process: all signals are blocked before the exec, and stay so until a `Ticket` is
  accepted. A HUP between the exec and the new program's handlers would end the process otherwise.
- Nothing but `enter` clears close-on-exec, immediately before the exec, and restores it if that fails.
- Until then everything can be undone: falling back puts each descriptor under its number again and becomes the old
  program, once. A socket has to be kept for that: the Python object that owns it may already have closed it. Of a file
  with a POSIX lock no second descriptor may be made, since closing it gives up the lock (fcntl(2)).
- The envelope is what every release understands, so it stays as it is; `estate` inside carries a version of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import sys
import traceback
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from procmgr.errors import ProcmgrError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

VARIABLE: Final = "PROCMGR_HANDOVER"
_MAX_BYTES: Final = 1 << 26
_ANSWER: Final = "adoptable_by"
_REASON_CHARACTERS: Final = 8 * 1024


class Role(Enum):
    """What the program that finds an envelope is to do with it.

    CHECK: say whether it could adopt it. ADOPT: do so. RETURN: do so as the old program, to which a new one fell back.
    """

    CHECK = "check"
    ADOPT = "adopt"
    RETURN = "return"


class HandoverError(ProcmgrError):
    """The state that was handed over cannot be taken over."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor that is handed over under its number."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to start a program, for execve(2)."""

    executable: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]

    @classmethod
    def same(cls, environ: Mapping[str, str]) -> Self:
        """Return what was started, by the names it was started with: after a deploy they may lead to a new release."""
        return cls(executable=sys.executable, arguments=tuple(sys.orig_argv), environ=environ)

    @classmethod
    def this(cls, environ: Mapping[str, str]) -> Self:
        """Return the release that runs now. To be called at the start, while the names still lead to it."""
        executable = Path(sys.executable)
        found_in = Path(__file__).resolve().parents[1]
        paths = [str(found_in), *filter(None, [environ.get("PYTHONPATH")])]
        return cls(
            executable=str(executable.parent.resolve() / executable.name),  # in a venv the last name is a symlink
            arguments=tuple(sys.orig_argv),
            environ={**environ, "PYTHONPATH": os.pathsep.join(paths)},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What is handed over: `estate` for the new program, the rest for getting there and back.

    `mask` is the signal mask to return to, `environ` and `cwd` are those of the first start, `back` is the program that
    writes this, `failure` why a new program could not take over.
    """

    estate: Mapping[str, Any]
    descriptors: tuple[int, ...]
    mask: tuple[int, ...]
    environ: Mapping[str, str]
    cwd: str
    back: Program
    release: str
    failure: str = ""

    def write(self) -> int:
        """Return a new memfd with the envelope in it; raises `OSError`."""
        fd = os.memfd_create("procmgr-handover", os.MFD_CLOEXEC)
        try:
            self.overwrite(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def overwrite(self, fd: int) -> None:
        """Write the envelope into `fd`; raises `OSError`."""
        back = {name: getattr(self.back, name) for name in Program.__slots__}
        body = {**{name: getattr(self, name) for name in self.__slots__}, "back": back}
        _write(fd, json.dumps(body, allow_nan=False).encode("ascii"))

    @classmethod
    def read(cls, fd: int) -> Self:
        """Return the envelope in `fd`; raises `HandoverError`."""
        try:
            body = json.loads(os.pread(fd, _MAX_BYTES, 0))
            back = body.pop("back")
            body |= {name: tuple(body[name]) for name in ("descriptors", "mask")}
            return cls(**body, back=Program(**{**back, "arguments": tuple(back["arguments"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HandoverError(f"descriptor {fd} holds no state of an arbiter: {error}") from error


def enter(program: Program, envelope: int, descriptors: Iterable[int], role: Role) -> NoReturn:
    """Become `program`, with the memfd `envelope` and `descriptors`; returns only by raising `OSError`."""
    passed = (envelope, *descriptors)
    environ = {**program.environ, VARIABLE: f"{role.value}:{os.getpid()}:{envelope}"}
    try:
        _set_inheritable(passed, inheritable=True)
        os.execve(program.executable, program.arguments, environ)  # noqa: S606 - what this process was started as
    finally:
        _set_inheritable(passed, inheritable=False)


def claim(environ: MutableMapping[str, str]) -> Ticket | None:
    """Take the envelope that is meant for this process out of `environ`; None if there is none.

    Raises `HandoverError` if what is announced is not there.
    """
    role, _, rest = environ.pop(VARIABLE, "").partition(":")
    pid, _, fd = rest.partition(":")
    # A variable that leaked to another process, or that somebody invented, means nothing.
    if role not in {each.value for each in Role} or pid != str(os.getpid()) or not fd.isdecimal():
        return None
    return Ticket(Role(role), int(fd))


class Ticket:
    """The new program's hold on what it was handed.

    A context manager: within it everything can be undone, and leaving it in order takes everything over for good.
    Whatever is raised within leads back to the old program; in a child that only checks it is raised further.
    """

    def __init__(self, role: Role, fd: int) -> None:
        self.role = role
        self._fd = fd
        self.envelope = Envelope.read(fd)
        self._spares: dict[int, int] = {}

    def __enter__(self) -> Self:
        mine = () if self.role is Role.CHECK else self.envelope.descriptors
        try:
            _set_inheritable((self._fd, *mine), inheritable=False)
            self._spares = {number: _spare(number) for number in mine if _is_socket(number)}
        except OSError as error:
            self._fall_back(_reason(error))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.role is Role.CHECK:
            return
        if error is not None:
            self._fall_back(_reason(error))
        self._accept()

    def answer(self, release: str) -> None:
        """Tell the arbiter whose child this is that its state can be adopted, by this `release`."""
        _write(self._fd, json.dumps({_ANSWER: release}).encode("ascii"))

    def _accept(self) -> None:
        """Take everything over for good: from here on there is no way back."""
        for spare in (*self._spares.values(), self._fd):
            os.close(spare)
        self._spares.clear()
        signal.pthread_sigmask(signal.SIG_SETMASK, self.envelope.mask)

    def _fall_back(self, reason: str) -> NoReturn:
        """Become the old program, since `reason`; raises `HandoverError` if this is the old one, or it is gone."""
        old = self.envelope
        if self.role is not Role.ADOPT:
            raise HandoverError(f"the state of release {old.release} cannot be taken over: {reason}")
        try:
            for number, spare in self._spares.items():
                os.dup2(spare, number)
            named = {name: getattr(old, name) for name in old.__slots__}
            Envelope(**{**named, "failure": reason}).overwrite(self._fd)
            enter(old.back, self._fd, old.descriptors, Role.RETURN)
        except OSError as error:
            raise HandoverError(f"{reason}; and there is no way back to {old.back.executable}: {error}") from error


def _reason(error: BaseException) -> str:
    """Return one line of what was refused on purpose, else a traceback."""
    if isinstance(error, ProcmgrError):
        return str(error)
    return "".join(traceback.format_exception(error)).strip()[-_REASON_CHARACTERS:]


def answered(fd: int) -> str | None:
    """Return the release of the program that called `Ticket.answer` on its copy of `fd`, None if it did not."""
    try:
        found = json.loads(os.pread(fd, _MAX_BYTES, 0))
    except ValueError:
        return None
    release = found.get(_ANSWER) if isinstance(found, dict) else None
    return release if isinstance(release, str) else None


def _write(fd: int, data: bytes) -> None:
    os.ftruncate(fd, 0)
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


def _set_inheritable(numbers: Iterable[int], *, inheritable: bool) -> None:
    for number in numbers:
        os.set_inheritable(number, inheritable)


def _is_socket(number: int) -> bool:
    return stat.S_ISSOCK(os.fstat(number).st_mode)


def _spare(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
