"""How every script here ends: an error in words, an interrupt in one line, and an exit status that tells them apart."""

import sys


def run(name, main):
    """Call `main` and leave with its status: 1 and a message for an expected error, 130 after Ctrl+C."""
    try:
        status = main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; nothing half made is left, and the same command goes on", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
