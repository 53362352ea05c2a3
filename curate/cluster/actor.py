"""The actor that Ray starts on other machines. The environment is set before anything reads it, so
this module imports nothing but the standard library.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any


class Worker:
    """A process that works on one job."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)

    def work(self, desk: Any, root: str, pickled: bytes) -> Any:
        """Run `function(payload, context)`, which shares its work by claims at the desk.

        `pickled` holds both: unpickling imports Polars, which reads the environment.
        """
        from curate.cluster.work import work

        function, payload = pickle.loads(pickled)
        return work(desk, root, function, payload)


def apply(environment: Mapping[str, str], pickled: bytes, item: bytes) -> bytes:
    """Apply a pickled function to a pickled item. Returns the pickled result."""
    os.environ.update(environment)
    return pickle.dumps(pickle.loads(pickled)(pickle.loads(item)))
