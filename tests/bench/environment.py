"""Find interpreters and build a bench environment for each: newest peers, procmgr from this tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.11", "3.13")
PEERS = ("uvicorn[standard]", "uvicorn-worker", "gunicorn", "granian", "uvloop", "httptools", "fastapi")
SHOWN = ("procmgr", "uvicorn", "gunicorn", "granian", "uvloop", "httptools")


class BenchError(Exception):
    """What keeps a measurement from being taken, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment with every server in it."""

    python: str  # version in full, "3.13.0"
    bin: Path
    versions: dict[str, str]


def version_of(interpreter: str) -> str | None:
    """Give X.Y of an interpreter that really starts (a pyenv shim may not)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_interpreter(wanted: str) -> str | None:
    """Find an interpreter by version ("3.13") or by name or path."""
    if os.sep in wanted or not wanted[:1].isdigit():
        return wanted if version_of(wanted) else None
    if wanted == "{}.{}".format(*sys.version_info[:2]):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    installed = sorted(pyenv.glob(f"versions/{wanted}.*/bin/python"))
    return next((str(found) for found in (f"python{wanted}", *installed) if version_of(str(found)) == wanted), None)


def build(interpreter: str) -> Environment:
    """Build, or find built, the environment of one interpreter; kept until pyproject.toml or the peers change."""
    venv = ROOT / f".bench-venv-{version_of(interpreter)}"
    stamp, project = venv / ".installed", ROOT / "pyproject.toml"
    peers = "\n".join(PEERS)
    built = stamp.exists() and stamp.read_text() == peers and stamp.stat().st_mtime >= project.stat().st_mtime
    if not built:
        print(f"Setting up {venv.name} (once) ...", flush=True)
        run(interpreter, "-m", "venv", str(venv))
        pip = (str(venv / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-qq", "install", "--upgrade")
        run(*pip, "pip")
        run(*pip, *PEERS, "-e", str(ROOT))
        stamp.write_text(peers)
    return describe(venv)


def describe(venv: Path) -> Environment:
    """Ask the environment what is installed in it."""
    code = (
        "import json, platform; from importlib.metadata import version as v;"
        f"print(json.dumps([platform.python_version(), {{n: v(n) for n in {SHOWN!r}}}]))"
    )
    python, versions = json.loads(run(str(venv / "bin/python"), "-c", code))
    return Environment(python=python, bin=venv / "bin", versions=versions)


def run(*command: str) -> str:
    """Run a command to its end; its complaint becomes ours."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} exited {done.returncode}")
    return done.stdout


def need(program: str, package: str) -> None:
    """Insist on a program of the system."""
    if shutil.which(program) is None:
        raise BenchError(f"{program} is not on PATH; install it: apt-get install {package}")
