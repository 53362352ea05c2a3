"""Run a pipeline: stages in order, each skipped when its inputs and config are unchanged.

The result of a stage is stored under a key: the hash of its config, with the outputs it names
filled in, and of the results of the stages before it. Jobs resume by themselves, so a stage that
was killed continues where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from curate.atomic import disk_errors
from curate.cluster import on_cluster
from curate.errors import UsageError
from curate.job import Context
from curate.pipeline.budget import Budget
from curate.pipeline.checks import check_stages
from curate.pipeline.config import PipelineConfig
from curate.pipeline.references import resolve, versions
from curate.pipeline.stages import Done, Stage
from curate.progress import counted, duration, say
from curate.store import is_remote, url_of
from curate.store.paths import is_file, make_folder, read_text, remove
from curate.train.launch import launch
from curate.warehouse.identity import digest
from curate.warehouse.names import publish_file
from curate.warehouse.parts import MANIFEST
from curate.warehouse.sql import write_database


class Pipeline:
    """A pipeline over one warehouse."""

    def __init__(self, config: PipelineConfig, stages: list[Stage], context: Context) -> None:
        self.config, self.stages, self.context = config, stages, context
        self.folder = context.warehouse.root / "_runs" / config.name
        self.budget = Budget(config.budget, stages, self.folder) if config.budget else None

    def key(self, stage: Stage, done: Mapping[str, Done]) -> str:
        """Hash of everything that determines the stage's result."""
        resolved = resolve(stage.config, done, stage.name)
        resolved.pop("cluster", None)  # where it runs does not change the result
        return digest(stage.do, resolved, [(n, done[n].digest) for n in stage.needs])[:24]

    def fitted(self, stage: Stage, done: Mapping[str, Done], decide: bool = False) -> Stage:
        """The stage with the values that the time budget leaves it; as written without a budget or
        a decision.
        """
        if self.budget is None:
            return stage
        return self.budget.fitted(stage, self.key(stage, done), done, decide)

    def find(self, stage: Stage, key: str) -> Done | None:
        """The stored result of the stage under this key, or None if it no longer exists."""
        path = self.folder / f"{stage.name}-{key}.json"
        try:
            done = Done(**json.loads(read_text(path)))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None
        root = self.context.warehouse.root
        intact = all(is_file(root / ref / MANIFEST) for ref in done.refs if ref.count("/") == 2)
        model = done.facts.get("model")
        return done if intact and (not model or Path(model).exists()) else None

    def run(self, only: Sequence[str] = ()) -> dict[str, Done]:
        """Run the unfinished stages and return every stage's result. If a stage fails, its
        commits are kept.
        """
        names = [stage.name for stage in self.stages]
        if unknown := sorted(set(only) - set(names)):
            raise UsageError(f"no stage {', '.join(unknown)}: there are {', '.join(names)}")
        wanted = set(only) | self._before(only) if only else set(names)
        self._check_place(wanted)
        check_stages([stage for stage in self.unfinished() if stage.name in wanted])
        done: dict[str, Done] = {}
        started, skipped = time.monotonic(), 0
        for number, stage in enumerate(self.stages, 1):
            if stage.name not in wanted:
                continue
            head = f"[{number}/{len(self.stages)}] {stage.name}"
            stage = self.fitted(stage, done, decide=not only or stage.name in only)
            key = self.key(stage, done)
            earlier = self.find(stage, key)
            if earlier is not None:
                done[stage.name] = earlier
                skipped += 1
                say(f"{head}: done before, skipped ({earlier.summary})")
                continue
            if only and stage.name not in only:
                raise UsageError(
                    f"stage {stage.name} comes before the stages of --only and is not done: "
                    "run it first"
                )
            say(head)
            done[stage.name] = self.run_stage(stage, key, done)
            say(f"{head}: {done[stage.name].summary}")
        seconds = duration(time.monotonic() - started)
        if skipped == len(done):
            say(f"nothing to do: {counted(skipped, 'stage')} done before ({seconds})")
        else:
            say(f"{counted(len(done) - skipped, 'stage')} run, {skipped} skipped, in {seconds}")
            write_database(self.context.warehouse.root)
        return done

    def _check_place(self, wanted: set[str]) -> None:
        """UsageError if a stage trains and the warehouse is object storage."""
        trains = [s.name for s in self.stages if s.kind.gives == "model" and s.name in wanted]
        if trains and is_remote(self.context.warehouse.root):
            raise UsageError(
                f"stage {trains[0]} trains, which needs a warehouse on a file system for its "
                f"checkpoints; {url_of(self.context.warehouse.root)} is object storage. Leave such "
                "stages to a pipeline of their own (--only runs some stages)"
            )

    def unfinished(self) -> list[Stage]:
        """Stages that are not done, in order."""
        done: dict[str, Done] = {}
        for stage in self.stages:
            if all(name in done for name in stage.needs):
                earlier = self.find(stage, self.key(stage, done))
                if earlier is not None:
                    done[stage.name] = earlier
        return [stage for stage in self.stages if stage.name not in done]

    def _before(self, names: Sequence[str]) -> set[str]:
        """Stages that the named ones need, directly or by way of others."""
        by_name = {stage.name: stage for stage in self.stages}
        todo, needed = list(names), set[str]()
        while todo:
            new = set(by_name[todo.pop()].needs) - needed
            needed |= new
            todo += new
        return needed

    def run_stage(self, stage: Stage, key: str, done: Mapping[str, Done]) -> Done:
        """Run one stage on the outputs of those before it, and record its result."""
        started = time.monotonic()
        kind, where = stage.kind, f"stage {stage.name}"
        config = resolve(stage.config, done, stage.name)
        for name in kind.exact & set(config):
            config[name] = versions(stage.config[name], done)
        for name in kind.takes & {"label", "name"}:
            if config.get(name) is None:
                config[name] = stage.name
        if stage.processes > 1 or stage.nodes > 1:
            self.context.engine.close()  # the first rank opens its own
            root = self.context.warehouse.root
            launch(stage.do, config, root, stage.processes, where, stage.nodes)
        # The ranks finished the run, so that this call only reads its result.
        checked = kind.config(config, where)
        with on_cluster(self.context, getattr(checked, "cluster", None)):
            result = kind.run(checked, self.context)
        facts = dict(result.facts)
        if result.model:
            facts["model"] = result.model
        value = str(facts.pop("value", result.model or ""))
        seconds = round(time.monotonic() - started, 1)
        summary, rate = result.summary, result.rate
        finished = Done(key, value, facts, result.refs, summary, seconds, rate)
        self._remember(stage, finished)
        return finished

    def _remember(self, stage: Stage, done: Done) -> None:
        text = json.dumps(done.__dict__, indent=1, default=str)
        path = self.folder / f"{stage.name}-{done.key}.json"
        with disk_errors(self.folder):
            make_folder(self.folder)
            remove([path])  # a record whose outputs are gone
            publish_file(
                self.context.warehouse.root, path, lambda staged: staged.write_text(text, "utf-8")
            )
