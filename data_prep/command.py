"""How every script here ends: an error in words, an interrupt in one line, and an exit status that tells them apart.

Import it before anything else: a Ctrl+C during the imports of large libraries then ends in one line too.
"""

import errno
import os
import signal
import sys

from data_prep.files import DiskFull

DISK_FULL = 74  # exit status, EX_IOERR of sysexits.h


def _interrupted(kind, value, traceback):
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, value, traceback)
        return
    print("\ninterrupted; nothing half made is left, and the same command goes on", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(130)


sys.excepthook = _interrupted
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")  # a file name that is no UTF-8 can be printed


def run(name, main):
    """Call `main` and leave with its status; with a message and 1 for an expected error, DISK_FULL where there is no room."""
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
