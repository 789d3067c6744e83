"""What an arbiter is made of: opened and bound at a start, taken over from the one before at an upgrade."""

from __future__ import annotations

import logging
import os
import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr import logs, process, systemd
from procmgr.arbiter.core.policy import Handover, Policy
from procmgr.arbiter.core.pool import Pool
from procmgr.arbiter.listeners import Listeners
from procmgr.arbiter.logfiles import LogFiles
from procmgr.arbiter.plans import Plans
from procmgr.arbiter.store import Store
from procmgr.scoreboard import BEAT_SECONDS
from procmgr.systemd import Notifier

if TYPE_CHECKING:
    from procmgr.arbiter.estate import Estate
    from procmgr.config.resolve import Invocation, Resolved
    from procmgr.config.settings import Settings
    from procmgr.logs import LogSetup

log = logging.getLogger("procmgr.error")

QUICK_SECONDS: Final = 1.0
KILL_GRACE_SECONDS: Final = 5.0
CORE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts; `born` is when this instance started, monotonic seconds.

    `estate` is what the others are made of at an upgrade, None at a start.
    """

    notifier: Notifier
    log_files: LogFiles
    logs: LogSetup
    listeners: Listeners
    plans: Plans
    pid_file: process.PidFile | None
    pool: Pool
    born: float
    estate: Estate | None = None

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.plans.in_force(self.pool.view().generation).settings

    def close(self) -> None:
        """Remove the pid file, close the listeners and unlink their files, at the end."""
        if self.pid_file is not None:
            self.pid_file.close()
        self.listeners.leave()


def start(invocation: Invocation, resolved: Resolved) -> Parts:
    """Open, bind and lock what the settings ask for; raises `ProcmgrError`, and nothing is left open then."""
    strangers = process.strange_descriptors()  # before anything of ours is open
    settings = resolved.settings
    log_files = LogFiles(settings.logs)
    setup = configure_logs(settings, error=log_files.error, access=log_files.access)
    notifier = Notifier.from_environ(os.environ)
    passed = systemd.inherited_sockets(os.environ, on_ignored=lambda reason: log.warning("%s", reason))
    for note in resolved.notes:
        log.info("%s", note)
    with ExitStack() as undo:
        stored = {name: fd for name, fd in passed if systemd.is_stored(name)}
        store = Store(notifier, passed=stored)
        store.sweep(settings.bind.addresses)
        listeners = Listeners(
            store=store,
            inherited=tuple(each for each in passed if each[0] not in stored),
            strangers=strangers.difference(stored.values()),
        )
        undo.callback(listeners.leave)
        plans = Plans(invocation=invocation, listeners=listeners)
        first = plans.make(settings)
        path = settings.process.pid
        pid_file = process.PidFile(Path(path)) if path is not None else None
        undo.pop_all()
    now = time.monotonic()
    pool = Pool(policy_of(settings), now=now, random=random.random)
    plans.start(pool.view().generation, first)
    return Parts(
        notifier=notifier,
        log_files=log_files,
        logs=setup,
        listeners=listeners,
        plans=plans,
        pid_file=pid_file,
        pool=pool,
        born=now,
    )


def take_over(invocation: Invocation, estate: Estate) -> Parts:
    """Take over what another arbiter opened, bound and locked; raises `ProcmgrError`, `OSError` or `KeyError`."""
    systemd.inherited_sockets(os.environ)  # only to clear the variables: the sockets themselves are handed over
    notifier = Notifier.from_environ(os.environ)
    pool = estate.restore_pool()
    listeners = Listeners.adopt(estate.listeners, store=Store(notifier))
    plans = Plans.adopt(estate.plans, invocation=invocation, listeners=listeners)
    settings = plans.in_force(pool.view().generation).settings
    log_files = LogFiles(settings.logs, estate.log_files)
    return Parts(
        notifier=notifier,
        log_files=log_files,
        logs=configure_logs(settings, error=log_files.error, access=log_files.access),
        listeners=listeners,
        plans=plans,
        pid_file=None if estate.pid_file is None else process.PidFile.adopt(estate.pid_file),
        pool=pool,
        born=estate.born,
        estate=estate,
    )


def policy_of(settings: Settings) -> Policy:
    """Translate settings into the numbers that the pool decides by; under --reload all workers are new, or none."""
    pool, health, developing = settings.pool, settings.health, settings.development.reload
    return Policy(
        workers=pool.workers,
        surge=pool.workers if developing else pool.reload_surge.count(pool.workers),
        boot_timeout=pool.timeout_boot,
        beat_timeout=pool.timeout,
        shutdown_delay=pool.shutdown_delay,
        graceful_timeout=pool.graceful_timeout,
        quick_timeout=QUICK_SECONDS,
        kill_grace=KILL_GRACE_SECONDS,
        boot_attempts=pool.boot_attempts,
        refork=settings.app.preload,
        handover=Handover.HOLD if developing else Handover.ROLL,
        core_grace=CORE_SECONDS if health.core_on_hang else 0.0,
        beat_interval=BEAT_SECONDS,
        slow_loop=health.slow_loop,
        max_lifetime=health.max_lifetime,
        max_lifetime_jitter=health.max_lifetime_jitter,
        max_memory=health.max_memory,
        max_memory_hard=health.max_memory_hard,
    )


def configure_logs(settings: Settings, *, error: int = 2, access: int = 1) -> LogSetup:
    """Set up logging to these descriptors; raises `ConfigError`."""
    return logs.configure(
        level=settings.logs.log_level,
        access=settings.logs.access_log,
        use_colors=settings.logs.use_colors,
        log_config=settings.logs.log_config,
        stdout=access,
        stderr=error,
    )


def live_level(settings: Settings) -> str | None:
    """Return the log level that a reload applies; None where the log configuration decides."""
    return settings.logs.log_level or (None if settings.logs.log_config else "info")
