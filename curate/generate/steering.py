"""Decide how many samples each problem of the open chunks gets, from the verdicts so far.

The worker calls `begin` when it claims a chunk, `sampled` for each completion, and `verified` when
the verdicts of a round are there. Each returns, or leads to, the keys to request next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from curate.generate.adaptive import UnitProgress
from curate.generate.background import BackgroundVerifier
from curate.generate.config import AdaptiveConfig
from curate.generate.meter import Meter
from curate.generate.open_chunk import OpenChunk, Row, without_tokens
from curate.generate.plan import as_problem
from curate.warehouse.chunks import Key


class Steering:
    """Turns verdicts into rounds of samples.

    progress_by_unit: (samples, good, verified) of units with committed traces; see
        `background.committed_progress`.
    """

    def __init__(
        self, config: AdaptiveConfig, samples: int, verifier: BackgroundVerifier, meter: Meter
    ) -> None:
        self.config, self.samples, self.verifier, self.meter = config, samples, verifier, meter
        self.progress_by_unit: Mapping[str, tuple[int, int, int]] = {}

    def begin(self, chunk: OpenChunk) -> Iterator[Key]:
        """The first round of each unit of a chunk, continuing from the rows in its log."""
        logged = chunk.logged_samples()
        rows = chunk.logged_rows() if logged else {}
        for unit, start, stop, _ in chunk.log.chunk.items:
            # A chunk that starts at sample 0 holds all samples of the unit: what is committed came
            # from elsewhere.
            _, good, verified = self.progress_by_unit.get(unit, (0, 0, 0)) if start else (0, 0, 0)
            chunk.progress[unit] = UnitProgress(
                start, min(stop, self.samples), good, verified, logged.get(unit, 0)
            )
        for unit in chunk.progress:
            yield from self._next_round(chunk, unit, rows)

    def sampled(self, chunk: OpenChunk, key: Key, row: Row) -> None:
        """Note a finished sample. The last one of a round sends the round to the verifier."""
        progress = chunk.progress[key[0]]
        progress.round.append(without_tokens(row))
        progress.waiting.discard(key[1])
        if not progress.waiting:
            self._submit(chunk, key[0])

    def verified(self, chunk: OpenChunk, unit: str, verdicts: pl.DataFrame) -> Iterator[Key]:
        """The next round of a unit whose last one was verified; nothing if it has enough."""
        chunk.verdicts.append(verdicts)
        progress = chunk.progress[unit]
        progress.good += int(verdicts["good"].sum())
        progress.verified += int(verdicts["verdict"].is_in(["correct", "wrong"]).sum())
        # Rows that an earlier owner of the chunk logged beyond this round are needed in the next
        # one. That is rare, so the log is read again instead of keeping its rows in memory.
        rows = chunk.logged_rows() if progress.logged > progress.requested else {}
        yield from self._next_round(chunk, unit, rows)

    def _next_round(self, chunk: OpenChunk, unit: str, logged: Mapping[Key, Row]) -> Iterator[Key]:
        progress = chunk.progress[unit]
        keys = [(unit, sample, 0) for sample in progress.advance(self.config)]
        if progress.settled:
            self.meter.advance(1)
            return
        progress.round = [logged[key] for key in keys if key in logged]
        missing = [key for key in keys if key not in chunk.log.done]
        progress.waiting = {sample for _, sample, _ in missing}
        if not missing:
            self._submit(chunk, unit)
        yield from missing

    def _submit(self, chunk: OpenChunk, unit: str) -> None:
        problem = as_problem(chunk.units[unit])
        rows, chunk.progress[unit].round = chunk.progress[unit].round, []
        self.verifier.submit((chunk.chunk_id, unit), [(row, problem) for row in rows])
