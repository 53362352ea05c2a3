"""A desk that separates nobody, like locks on a share that do not reach other machines."""

from __future__ import annotations

import sys

from curate.cluster.desk import Desk


class OpenDesk(Desk):
    """Grants every claim."""

    def take(self, name: str, worker: str) -> bool:
        self.beat(worker)
        return True


if __name__ == "__main__":
    from curate import cli
    from curate.cluster import crew
    from tests.cluster import desks

    crew.Desk = desks.OpenDesk  # type: ignore[misc]
    sys.argv[0] = "curate"
    cli.main()
