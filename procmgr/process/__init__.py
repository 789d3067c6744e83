"""What a process sets on itself: death signal, name, privileges, limits, pid file; and how many CPUs it may use."""

from procmgr.process.attributes import (
    allow_core,
    get_pdeathsig,
    open_standard_streams,
    raise_nofile_limit,
    set_pdeathsig,
    set_subreaper,
    set_title,
    strange_descriptors,
)
from procmgr.process.cpus import cpu_quota, usable_cpus
from procmgr.process.pidfile import PidFile, PidFileEstate
from procmgr.process.privileges import Privileges, check_privileges, drop_privileges, resolve_privileges
from procmgr.process.sigstack import enlarge_signal_stack

__all__ = [
    "PidFile",
    "PidFileEstate",
    "Privileges",
    "allow_core",
    "check_privileges",
    "cpu_quota",
    "drop_privileges",
    "enlarge_signal_stack",
    "get_pdeathsig",
    "open_standard_streams",
    "raise_nofile_limit",
    "resolve_privileges",
    "set_pdeathsig",
    "set_subreaper",
    "set_title",
    "strange_descriptors",
    "usable_cpus",
]
