"""Giving up rights: what `--user` and `--group` mean, and becoming that for good."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from procmgr.errors import ConfigError, PrivilegeError

_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Privileges:
    """Whom a process is to become: user, group and all supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def resolve_privileges(user: str | None, group: str | None) -> Privileges | None:
    """Return what `--user` and `--group` (names or numbers) mean; None if neither is given.

    With a user, the group is the user's own unless given and the supplementary groups are the user's; with a group
    alone the user stays and every supplementary group goes. Raises ConfigError for one that does not exist.
    """
    if user is None and group is None:
        return None
    gid = None if group is None else _gid(group)
    if user is None:
        uid, name, primary = os.geteuid(), None, None
    else:
        uid, name, primary = _user(user)
    if gid is None:
        gid = primary
    if gid is None:
        raise ConfigError(f"user {user!r}: uid {uid} has no passwd entry to take the group from; add --group")
    groups = os.getgrouplist(name, gid) if name is not None else [gid]
    return Privileges(uid=uid, gid=gid, groups=tuple(sorted(set(groups))))


def _user(user: str) -> tuple[int, str | None, int | None]:
    """Return uid, name and primary gid; the latter two are None for a number without passwd entry."""
    try:
        entry = pwd.getpwuid(int(user)) if _is_id(user) else pwd.getpwnam(user)
    except KeyError as error:
        if _is_id(user):
            return int(user), None, None
        raise ConfigError(f"user {user!r}: there is no such user; give a user's name or uid") from error
    return entry.pw_uid, entry.pw_name, entry.pw_gid


def _gid(group: str) -> int:
    if _is_id(group):
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"group {group!r}: there is no such group; give a group's name or gid") from error


def _is_id(text: str) -> bool:
    # 2**32 - 1 is -1 as uid_t: setresuid(2) would take it for "leave unchanged".
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**32 - 1


def check_privileges(privileges: Privileges, *, status: Path = _STATUS) -> None:
    """Raise PrivilegeError if `drop_privileges` is bound to fail, as far as /proc tells (capabilities(7))."""
    if _holds(privileges):
        return
    needed = {"CAP_SETGID": 6} if privileges.uid in os.getresuid() else {"CAP_SETGID": 6, "CAP_SETUID": 7}
    try:
        found = re.search(
            r"^CapEff:\s*([0-9a-f]+)$", status.read_text(encoding="ascii", errors="replace"), re.MULTILINE
        )
    except OSError:
        return
    if found and any(not int(found[1], 16) >> bit & 1 for bit in needed.values()):
        raise _cannot_become(privileges, os.strerror(errno.EPERM))


def drop_privileges(privileges: Privileges) -> None:
    """Become `privileges` for good: supplementary groups, then group, then user, each in all three of its forms.

    Does nothing if there is nothing to drop. The kernel clears the death signal and makes the process undumpable
    (no core file, /proc/self owned by root): the caller sets again what it needs. Raises PrivilegeError.
    """
    if _holds(privileges):
        return
    uid, gid = privileges.uid, privileges.gid
    try:
        os.setgroups(privileges.groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise _cannot_become(privileges, error.strerror) from error
    if not _holds(privileges):
        raise PrivilegeError(f"cannot become uid {uid}, gid {gid}: the kernel kept other rights")


def _cannot_become(privileges: Privileges, why: str | None) -> PrivilegeError:
    needs = "needs root, or CAP_SETUID and CAP_SETGID"
    return PrivilegeError(f"cannot become uid {privileges.uid}, gid {privileges.gid}: {why}; {needs}")


def _holds(privileges: Privileges) -> bool:
    """Tell whether this process has exactly that user and group, and no supplementary group beyond."""
    return (
        os.getresuid() == (privileges.uid,) * 3
        and os.getresgid() == (privileges.gid,) * 3
        and set(os.getgroups()) <= {privileges.gid, *privileges.groups}
    )
