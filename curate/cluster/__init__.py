"""The same jobs on several machines: Ray places processes, and each of them runs the job.

    with on_cluster(context, config.cluster):
        job.run(config, context)

The driver (the process of the command) plans, reports, seals and records. Each worker is an actor
that runs what one machine would run: it claims chunks, works, commits, and returns when nothing is
missing, so the first return ends the job. Claims are held by one actor next to the driver
(desk.py). Correctness does not depend on this, since put-if-absent alone ensures it; the cluster
places processes and keeps them from doing the same work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curate.job import ClusterConfig, Context


@contextmanager
def on_cluster(context: Context, config: ClusterConfig | None) -> Iterator[Context]:
    """Run the jobs of this block on the config's cluster, or here if it has none."""
    if config is None:
        yield context
        return
    from curate.cluster.crew import RayCrew, connected

    outer = context.crew
    with connected(config):
        context.crew = RayCrew(config, context.warehouse.root)
        try:
            yield context
        finally:
            context.crew = outer
