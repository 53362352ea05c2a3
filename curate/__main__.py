"""Entry point of the command line: `curate …` and `python -m curate …`.

It imports nothing itself, so that Ctrl-C during the imports is one line like at any later moment.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. An interruption before it has started has exit code 1, too."""
    try:
        from curate.cli import main as run
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was started", file=sys.stderr)
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
