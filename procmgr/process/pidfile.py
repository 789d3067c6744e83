"""The pid file: at any time either absent, or complete and locked by the instance that it names."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import Self

from procmgr.errors import ConfigError, PrivilegeError, ProcmgrError
from procmgr.handover import Descriptor
from procmgr.plain import record


@record
class PidFileEstate:
    """A pid file as it is handed over: its path, and the descriptor that carries the lock."""

    path: str
    fd: Descriptor


class PidFile:
    """A file with the arbiter's pid, locked for as long as the arbiter lives, so that no left-over can be mistaken.

    The lock is POSIX's (fcntl(2), F_SETLK): it survives execve(2) and children do not inherit it. It is lost as soon as
    this process closes *any* descriptor of the file, hence the file is opened once and never read again.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: str | Path) -> None:
        """Write and lock the pid file at `path`, mode 0644; call it once the listeners are bound.

        It appears complete and locked, or not at all. A left-over whose lock is free is replaced. Raises ProcmgrError
        if a live instance has it, ConfigError if it is no pid file, ConfigError or PrivilegeError if it cannot be made.
        """
        self.path = Path(path).absolute()
        self._fd, temporary = _prepare(self.path)
        try:
            _publish(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(self._fd)
            raise

    @classmethod
    def adopt(cls, estate: PidFileEstate) -> Self:
        """Take over the pid file of this process, which is locked still, without opening it."""
        adopted = cls.__new__(cls)
        adopted.path, adopted._fd = Path(estate.path), estate.fd.number  # noqa: SLF001 - of its own class
        return adopted

    def hand_over(self) -> PidFileEstate:
        """Return what `adopt` needs."""
        return PidFileEstate(path=str(self.path), fd=Descriptor(self._fd))

    def fileno(self) -> int:
        """Return the descriptor that carries the lock."""
        return self._fd

    def close_in_child(self) -> None:
        """Close a forked child's copy: the file and its lock stay the parent's."""
        os.close(self._fd)

    def close(self) -> None:
        """Remove the file if it is still this one, then give up the lock."""
        try:
            if os.path.samestat(os.fstat(self._fd), self.path.lstat()):
                self.path.unlink()
        except OSError:
            pass  # gone, or not ours to remove any more: whoever starts next finds its lock free
        os.close(self._fd)


def _prepare(target: Path) -> tuple[int, Path]:
    """Make the file under a temporary name beside `target`, with its content and its lock."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _pid_file_error(target, error) from error
    os.write(fd, b"%d\n" % os.getpid())
    os.fchmod(fd, 0o644)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd, Path(name)


def _publish(temporary: Path, target: Path) -> None:
    """Give the locked file its name, which nobody or only a dead instance may have."""
    while True:
        try:
            # link(2) fails where rename(2) would replace: of two instances starting at once, one loses here.
            os.link(temporary, target)
        except FileExistsError:
            if _replace_leftover(temporary, target):
                return
        except OSError as error:
            raise _pid_file_error(target, error) from error
        else:
            temporary.unlink()
            return


def _replace_leftover(temporary: Path, target: Path) -> bool:
    """Rename over a left-over while holding its lock; return False if it went away or changed meanwhile."""
    try:
        leftover = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _pid_file_error(target, error) from error
    try:
        _lock_leftover(leftover, target)
        if not os.path.samestat(os.fstat(leftover), target.lstat()):
            return False
        temporary.rename(target)
    except FileNotFoundError:
        return False
    finally:
        os.close(leftover)
    return True


def _lock_leftover(leftover: int, target: Path) -> None:
    regular = stat.S_ISREG(os.fstat(leftover).st_mode)
    content = os.read(leftover, 64).strip() if regular else b""
    if not regular or (content and not content.isdigit()):
        raise ConfigError(f"pid file {target}: this file holds no pid; remove it or choose another path")
    try:
        fcntl.lockf(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ProcmgrError(f"pid file {target}: already running as pid {content.decode() or 'unknown'}") from error


def _pid_file_error(target: Path, error: OSError) -> ProcmgrError:
    kind = PrivilegeError if isinstance(error, PermissionError) else ConfigError
    directory = isinstance(error, IsADirectoryError)
    wanted = "expected a file" if directory else "its directory must exist and be writable"
    return kind(f"pid file {target}: {error.strerror}; {wanted}")
