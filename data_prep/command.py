"""How every script here ends: an error in words, an interrupt in one line, and an exit status that tells them apart.

A script imports it before anything else: a Ctrl+C while it imports large libraries then ends in one line too, and a library
that is missing in words. Where Python was not started with a script of this checkout, as in a notebook, importing does nothing.
"""

import errno
import os
import signal
import sys
from pathlib import Path

from data_prep.files import DiskFull

DISK_FULL = 74  # exit status, EX_IOERR of sysexits.h
ROOT = Path(__file__).resolve().parent.parent


def _ended(kind, value, traceback):
    """Python's excepthook of a script."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted; nothing half made is left, and the same command goes on", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)
    if issubclass(kind, ModuleNotFoundError) and Path(sys.prefix) != ROOT / ".venv":
        print(f"{Path(sys.argv[0]).name}: {value}; run it with .venv/bin/python, which `make env` makes", file=sys.stderr)
    else:
        sys.__excepthook__(kind, value, traceback)


if Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve().parent.parent == ROOT:
    sys.excepthook = _ended


def run(name, main):
    """Call `main` and leave with its status; with a message and 1 for an expected error, DISK_FULL where there is no room."""
    sys.excepthook = _ended
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name that is no UTF-8 can be printed
    try:
        sys.exit(main())
    except BrokenPipeError:  # who reads the output, head for one, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "; what was finished is kept: make room, and the same command goes on" if full else ""
        print(f"{name}: {error}{advice}", file=sys.stderr)
        sys.exit(DISK_FULL if full or isinstance(error, DiskFull) else 1)
    except (ValueError, ImportError) as error:
        sys.exit(f"{name}: {error}")
