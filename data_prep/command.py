"""How every script here ends: an error in words, an interrupt in one line, and an exit status that tells them apart.

Import it before anything else: a Ctrl+C during the imports of large libraries then ends in one line too.
"""

import os
import sys


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
    """Call `main` and leave with its status, or with 1 and a message for an expected error."""
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{name}: {error}")
