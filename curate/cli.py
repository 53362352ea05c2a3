"""The command line: one Typer app. A command is a config, validated before anything heavy is
imported, and a job.
"""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from curate.cluster import on_cluster
from curate.console import completion
from curate.errors import CurateError, UsageError
from curate.extras import EXTRAS, install
from curate.progress import counted, output, say
from curate.store import parse_root, url_of

if TYPE_CHECKING:
    from curate.evaluate.job import EvaluateConfig
    from curate.exploits.job import RewardReport
    from curate.job import Context

# The order in which a newcomer meets the commands.
ORDER = (
    "problems", "generate", "import", "annotate", "filter", "train", "evaluate", "influence",
    "correct", "rescore", "reward", "run", "report", "watch",
    "sql", "show", "lineage", "verify", "export", "merge", "check", "schema", "version",
)  # fmt: skip


class _InOrder(TyperGroup):
    """Lists the commands in ORDER."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    cls=_InOrder,
    help="Make reasoning data, judge every row of it, and train on it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
problems_app = typer.Typer(help="List, load and show stored problems.")
app.add_typer(problems_app, name="problems", no_args_is_help=True)
train_app = typer.Typer(
    help="Train on a corpus (sft, distill), on pairs of traces (dpo) or by RL on problems (grpo).",
)
app.add_typer(train_app, name="train", no_args_is_help=True)
reward_app = typer.Typer(help="Work on reward sets before they train anything.")
app.add_typer(reward_app, name="reward", no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with the config.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value replaces a value of the config.", metavar="[KEY=VALUE]..."),
]
WarehouseDir = Annotated[
    Path, typer.Option("--warehouse", "-w", envvar="CURATE_WAREHOUSE", help="Where the data is.")
]
FilesAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files to read instead of a warehouse, and key=value.",
        metavar="[FILE | KEY=VALUE]...",
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option("--text-column", help="For files: the column of the text [completion]."),
]
Form = Annotated[
    str | None,
    typer.Option(
        "--form", help="For files: r1, r1-zero or plain; by default no tags are required."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")]
HERE = Path("warehouse")


def _context(warehouse: Path) -> Context:
    from curate.job import Context

    return Context(warehouse)


def _read(file: Path | None, overrides: list[str] | None, **fixed: Any) -> dict[str, Any]:
    from curate.config import override, read_yaml
    from curate.registry import add_folder

    data = read_yaml(file) if file else {}
    if file:
        add_folder(file.parent)
    return override({**data, **fixed}, overrides or [])


def _version(given: bool) -> None:
    if given:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `curate` itself."""


@problems_app.command("list")
def problems_list(warehouse: WarehouseDir = HERE) -> None:
    """List the stored problems, the newest version of each name."""
    from curate.console.show import list_problems

    output(list_problems(warehouse))


@problems_app.command("load")
def problems_load(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files of problems, or source=NAME; name=, held_out=, and keys of the source.",
            metavar="[FILE | KEY=VALUE]...",
        ),
    ] = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
) -> None:
    """Load problems from files, a generator or a Hugging Face dataset, and store them by name."""
    from curate.problems.store import STAGE, stage_of

    files, overrides = _split(arguments)
    data = stage_of([str(file) for file in files], _read(config, overrides))
    with _context(warehouse) as context:
        result = STAGE.run(STAGE.config(data, str(config or "problems load")), context)
    output(result.summary)
    output(f"problems: {result.facts['value']} in {context.warehouse.root}")


@problems_app.command("show")
def problems_show(
    name: Annotated[
        str,
        typer.Argument(
            help="A name, name@version, or the id of one problem.",
            autocompletion=completion.problems,
        ),
    ],
    warehouse: WarehouseDir = HERE,
) -> None:
    """Show what a stored set holds, or one problem and how often it was solved."""
    from curate.console.show import show_problems

    output(show_problems(warehouse, name))


@app.command()
def generate(
    recipe: Annotated[
        str,
        typer.Argument(
            help="cold-start, r1-zero, rejection, distill, or a YAML file.",
            autocompletion=completion.recipes,
        ),
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    dry_run: DryRun = False,
    limit: Annotated[int | None, typer.Option(help="Use only the first N problems.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send failed requests again.")
    ] = False,
) -> None:
    """Sample traces by a recipe. Run the same command again to resume."""
    from curate.generate import job
    from curate.generate.config import generate_config

    if recipe.endswith((".yaml", ".yml")):
        if config:
            raise UsageError(f"two configs are given, {recipe} and --config {config}: give one")
        data = _read(Path(recipe), overrides)
    else:
        data = _read(config, overrides, recipe=recipe)
    if limit is not None:
        data["limit"] = limit
    if retry_failed:
        data["retry_failed"] = True
    checked = generate_config(data, str(config or recipe))
    with _context(warehouse) as context:
        if dry_run:
            output(job.describe(job.make_plan(checked, context, commit=False)))
            return
        with on_cluster(context, checked.cluster):
            result = job.run(checked, context)
    output(result.summary)
    output(f"traces: {result.facts['family']} in {url_of(context.warehouse.root)}")


@app.command("import")
def import_(
    path: Annotated[
        str,
        typer.Argument(help="JSONL or Parquet, a folder of them, a saved dataset, or a Hub id."),
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
) -> None:
    """Import existing traces; the format is detected from their columns."""
    from curate.config import validate
    from curate.imports import job as importing

    checked = validate(
        importing.ImportConfig, _read(config, overrides, path=path), str(config or "import")
    )
    with _context(warehouse) as context:
        output(importing.run(checked, context).summary)


@app.command()
def annotate(
    arguments: FilesAndOverrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    text_column: TextColumn = None,
    form: Form = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="For files: where to write the annotated rows.")
    ] = None,
) -> None:
    """Add verdicts and signals to traces that lack them, or signals to files; nothing is
    dropped.
    """
    from curate.annotate import job
    from curate.config import validate

    files, overrides = _split(arguments)
    checked = validate(job.AnnotateConfig, _read(config, overrides), str(config or "annotate"))
    if files:
        from curate.signals.plain_files import annotate_files

        target, column = _needed_out(out, files), text_column or "completion"
        rows = annotate_files(files, target, column, form, checked.signals, memory=checked.memory)
        output(f"{counted(rows, 'row')} annotated: {out}")
        return
    _for_files_only(out, text_column, form)
    with _context(warehouse) as context, on_cluster(context, checked.cluster):
        output(job.run(checked, context).summary)


@app.command("filter")
def filter_(
    rules: Annotated[
        str,
        typer.Argument(
            help="A rule set: cold-start, rejection, unfiltered, or a YAML file.",
            autocompletion=completion.rules,
        ),
    ],
    arguments: FilesAndOverrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    explain: Annotated[
        str | None, typer.Option(metavar="TRACE_ID", help="Why a trace was kept or dropped.")
    ] = None,
    text_column: TextColumn = None,
    form: Form = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="For files: where to write the kept rows.")
    ] = None,
) -> None:
    """Decide by SQL rules which traces make a corpus, or which rows of files stay."""
    from curate.config import validate
    from curate.filter import job

    files, overrides = _split(arguments)
    checked = validate(
        job.FilterConfig, _read(config, overrides, rules=rules), str(config or rules)
    )
    for file in files:
        if not Path(file).exists():
            raise UsageError(
                f"no file {file}: one rule set is applied at a time; the other arguments are files "
                "to read, or key=value"
            )
    if files:
        from curate.filter.funnel import print_funnel
        from curate.filter.plain_files import explain_files, filter_files, overlaps_file
        from curate.filter.rules import load_rules

        chosen = load_rules(checked.rules, checked.set, checked.without)
        how = (text_column or "completion", form, checked.where, checked.memory)
        if explain:
            output(explain_files(files, chosen, explain, *how))
            return
        target = _needed_out(out, files)
        result = filter_files(files, chosen, target, *how)
        print_funnel(result.funnel)
        kept, total, _ = result.counts()
        lines = job.overlap_lines(result, table=overlaps_file(target))
        output("\n".join([*lines, f"{kept:,} of {counted(total, 'row')} kept: {out}"]))
        return
    _for_files_only(out, text_column, form)
    with _context(warehouse) as context:
        if explain:
            output(job.explain_trace(checked, context, explain))
            return
        with on_cluster(context, checked.cluster):
            output(job.run(checked, context).summary)


@app.command()
def export(
    corpus: Annotated[
        str,
        typer.Argument(
            help="Name of a corpus, or name@version.", autocompletion=completion.corpora
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write, or one file.parquet or .jsonl.")
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="messages, prompt-completion, conversational, sharegpt, preference (pairs for "
            "DPO), prompts or verl (for RL).",
        ),
    ] = "messages",
    trainer: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Add a config of trl, verl, prime-rl, openrlhf, axolotl or llama-factory, with "
            "data in the format that it reads.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="For --for: the model to train [the one that sampled]."),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Licence that the card names, such as mit.")
    ] = None,
    suffix: Annotated[str, typer.Option("--suffix", help=".parquet or .jsonl.")] = ".parquet",
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Push it to the Hub as well.")
    ] = None,
    warehouse: WarehouseDir = HERE,
) -> None:
    """Write a corpus in the format that other trainers read, with a card about its origin."""
    from curate.filter.export import export_corpus

    rows = export_corpus(
        _context(warehouse).warehouse,
        corpus,
        out,
        format,
        suffix,
        push,
        trainer=trainer,
        model=model,
        license=license,
    )
    output(f"{counted(rows, 'row')}: {out}")
    if trainer:
        output(f"{out}/README.md says how to train on them with {trainer}")


def _split(arguments: list[str] | None) -> tuple[list[str | Path], list[str]]:
    """Files, and key=value overrides."""
    given = arguments or []
    return [a for a in given if "=" not in a], [a for a in given if "=" in a]


def _needed_out(out: Path | None, files: Sequence[str | Path]) -> Path:
    if out is None:
        raise UsageError(
            f"files are given ({files[0]}): say where to write the result with --out "
            "FILE.parquet (or .jsonl)"
        )
    _check_out(out, files)
    return out


def _check_out(out: Path, files: Sequence[str | Path]) -> None:
    """UsageError if the result would replace an input."""
    for file in files:
        if Path(file).exists() and out.exists() and out.samefile(file):
            raise UsageError(f"--out {out} is an input: name another file, so that nothing is lost")


def _for_files_only(out: Path | None, text_column: str | None, form: str | None) -> None:
    options = {"--out": out, "--text-column": text_column, "--form": form}
    if given := [name for name, value in options.items() if value is not None]:
        raise UsageError(
            f"{' and '.join(given)}: only for files, and none is given. Without files the "
            "traces of the warehouse "
            "are read; name files as arguments"
        )


def _train(
    kind: str, overrides: list[str] | None, config: Path | None, warehouse: Path, dry_run: bool
) -> None:
    from curate.train import job as jobs

    data = _read(config, overrides)
    with _context(warehouse) as context:
        if dry_run:
            output(jobs.describe(kind, data, context, str(config or kind)))
            return
        result = jobs.run(kind, data, context, str(config or kind))
    if result:
        output(result.summary)
        output(f"model: {result.model}")


@train_app.command()
def sft(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    dry_run: DryRun = False,
) -> None:
    """Supervised fine-tuning on a corpus: loss on completions only."""
    _train("sft", overrides, config, warehouse, dry_run)


@train_app.command()
def distill(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    dry_run: DryRun = False,
) -> None:
    """Distil a teacher into a student, on a corpus or on the student's own samples."""
    _train("distill", overrides, config, warehouse, dry_run)


@train_app.command()
def dpo(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    dry_run: DryRun = False,
) -> None:
    """Direct preference optimisation on pairs of traces, which SQL rules choose and reject."""
    _train("dpo", overrides, config, warehouse, dry_run)


@train_app.command()
def grpo(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    dry_run: DryRun = False,
) -> None:
    """Group-relative policy optimisation with rule rewards; rollouts are stored as traces."""
    _train("grpo", overrides, config, warehouse, dry_run)


@app.command()
def influence(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
) -> None:
    """Measure which traces would make target problems likelier, by gradients (experimental)."""
    from curate.config import validate
    from curate.train.config import InfluenceConfig

    checked = validate(InfluenceConfig, _read(config, overrides), str(config or "influence"))
    from curate.train import influence as job

    with _context(warehouse) as context:
        output(job.run(checked, context).summary)


@app.command()
def correct(
    corrections: Annotated[
        list[str],
        typer.Argument(
            help="A file with problem_id and proposed, or PROBLEM_ID=REFERENCE.",
            metavar="FILE | [PROBLEM_ID=REFERENCE]...",
        ),
    ],
    warehouse: WarehouseDir = HERE,
) -> None:
    """Correct references of problems, and judge their stored traces again; nothing is sampled."""
    from curate.annotate import corrections as job

    if len(corrections) == 1 and "=" not in corrections[0]:
        rows = job.read_corrections(Path(corrections[0]))
    else:
        rows = job.pairs(corrections)
    with _context(warehouse) as context:
        output(job.correct(rows, context).summary)


@app.command()
def rescore(
    run: Annotated[
        str, typer.Argument(help="A training run with rollouts: its id, or the training's name.")
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
) -> None:
    """Give stored rollouts other rewards, and show what changes; nothing is sampled."""
    from curate.console.query import table
    from curate.train import rescore as job

    data = _read(config, overrides, run=run)
    with _context(warehouse) as context:
        result = job.run(data, context, str(config or "rescore"))
        by_step, by_problem = job.changes(context.warehouse, result.facts["rescore_id"])
    output(table(by_step))
    if by_problem.height:
        output("\n" + table(by_problem))
    output(f"\n{result.summary}; by problem and step: curate sql --file rescored")


@reward_app.command("test")
def try_rewards(
    config: Annotated[
        str, typer.Argument(help="YAML with rewards, of a GRPO run, or a pipeline (or its name).")
    ],
    overrides: Overrides = None,
    warehouse: WarehouseDir = HERE,
) -> None:
    """Try exploits on a reward set, and measure it on stored rollouts (run=RUN).

    Exit code 1 if a limit is exceeded.
    """
    from curate.exploits.job import reward_config, run

    failures = []
    with _context(warehouse) as context:
        for label, data in _reward_sets(config):
            report = run(reward_config(data, label, overrides or []), context)
            output(f"{label}\n{_reward_report(report)}\n")
            failures += [f"{label}: {line}" for line in report.failures]
    if failures:
        output("\n".join(failures))
        raise typer.Exit(1)


def _reward_sets(config: str) -> list[tuple[str, dict[str, Any]]]:
    """The config of a file, or of each stage of a pipeline that has rewards, with its label."""
    from curate.config import read_yaml
    from curate.registry import add_folder

    path = Path(config)
    data = read_yaml(path) if path.is_file() else {"stages": {}}
    if "stages" not in data:
        add_folder(path.parent)
        return [(config, data)]
    from curate.pipeline.config import load_pipeline

    name, stages = load_pipeline(config, [])
    sets = {
        f"{name.name}: {stage.name}": {
            "rewards": stage.checked.rewards,
            "form": stage.checked.form,
        }
        for stage in stages
        if hasattr(stage.checked, "rewards")
    }
    if not sets:
        raise UsageError(f"{config}: no stage of this pipeline has rewards")
    # Repeated stages have the same rewards: each set is tested once, under its first name.
    distinct = {str(data): (label, data) for label, data in reversed(sets.items())}
    return list(reversed(distinct.values()))


def _reward_report(report: RewardReport) -> str:
    """The report of a test as tables."""
    import polars as pl

    from curate.console.query import table
    from curate.visible import one_line

    parts = [table(report.rates.with_columns(pl.col("rate").round(3)))]
    if report.left_out:
        parts.append(f"left out, they ask a model: {', '.join(report.left_out)} (judges=true)")
    if report.exploited.height:
        shown = report.exploited.group_by("component", "exploit", maintain_order=True).first()
        cut = pl.col("completion").map_elements(
            lambda text: one_line(text)[:80], return_dtype=pl.String
        )
        parts.append("paid, one example each:\n" + table(shown.drop("family").with_columns(cut)))
    if report.disagreement.height:
        parts.append("verifiers:\n" + table(report.disagreement))
    if (stored := report.stored) is not None:
        parts.append(
            f"stored rollouts of run {stored.run_id}: {stored.rollouts} in {stored.groups} groups, "
            f"{stored.zero_variance:.3f} of them with equal rewards; {stored.changed} rollouts on "
            "another side of their group's mean than before"
        )
        parts.append("scale:\n" + table(stored.scales))
        parts.append("correlation:\n" + table(stored.correlation))
    return "\n\n".join(parts)


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to compare, and key=value overrides.")
    ] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            "--problems",
            "-p",
            help="Stored problems: name or name@version.",
            autocompletion=completion.problems,
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option("-k", help="Samples per problem.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark",
            "-b",
            help="Presets, with commas: aime24, aime25, math500, gpqa-diamond, livecodebench, "
            "mmlu-pro.",
        ),
    ] = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    dry_run: DryRun = False,
) -> None:
    """Compare models on held-out problems: pass@1, pass@k, cons@k, with intervals and
    differences.
    """
    from curate.config import validate
    from curate.evaluate import job
    from curate.evaluate.presets import presets

    named = [m for m in models or [] if "=" not in m]
    overrides = [m for m in models or [] if "=" in m]
    if benchmark:
        if config or problems:
            raise UsageError("--benchmark brings its own problems: leave out --config and -p")
        sets = presets(benchmark, overrides)
    else:
        sets = [(str(config or "evaluate"), _read(config, overrides))]
    with _context(warehouse) as context:
        for name, data in sets:
            if named:
                data["models"] = [{"label": _label(m), "model": m} for m in named]
            if problems:
                data["problems"] = problems
            if samples is not None:
                data["samples"] = samples
            checked = validate(job.EvaluateConfig, data, name)
            if benchmark:
                output(f"{name}: {checked.samples} samples, {checked.sampling.max_tokens:,} tokens")
            _evaluate(checked, context, dry_run)


def _evaluate(config: EvaluateConfig, context: Context, dry_run: bool) -> None:
    """Run one evaluation and print its table, or only its plan."""
    from curate.evaluate import job
    from curate.generate import job as generation

    if dry_run:
        for runs in job.generation_configs(config).values():
            for one in (sampled for run in runs for sampled in run if sampled):
                plan = generation.make_plan(one, context, commit=False)
                output(f"{one.label}\n{generation.describe(plan)}\n")
        return
    with on_cluster(context, config.cluster):
        output(job.run(config, context).facts["table"])


def _label(model: str) -> str:
    """The last two names of a path, or the name of a model."""
    parts = [p for p in model.rstrip("/").split("/") if p not in (".", "..")]
    return "/".join(parts[-2:]) or model


@app.command()
def run(
    pipeline: Annotated[
        str,
        typer.Argument(
            help="A pipeline file, or the name of one that ships.",
            autocompletion=completion.pipelines,
        ),
    ],
    overrides: Overrides = None,
    warehouse: Annotated[
        Path | None, typer.Option("--warehouse", "-w", help="Where the data is.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", "--dry-run", help="Show and check the stages, run none.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Run this stage only (may be repeated).")
    ] = None,
    no_code: Annotated[
        bool, typer.Option("--no-code", help="Refuse a pipeline that names code to import.")
    ] = False,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Run every stage with tiny models in a temporary warehouse, and print what the "
            "real run needs.",
        ),
    ] = False,
    gpu: Annotated[
        str, typer.Option("--gpu", help="With --rehearse: the GPU of the bill, such as h100.")
    ] = "h100",
    price: Annotated[
        float | None, typer.Option("--price", help="With --rehearse: US dollars per GPU and hour.")
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume",
            metavar="NAME=VALUE",
            help="With --rehearse: length, kept, question, train, prefill, decode, flops, "
            "bandwidth or memory (may be repeated; docs/rehearsal.md).",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="With --rehearse: print the result as JSON.")
    ] = False,
) -> None:
    """Run the stages of a pipeline; finished stages are skipped."""
    from curate.pipeline.config import code_of, load_pipeline
    from curate.pipeline.runner import Pipeline

    if code := code_of(pipeline, overrides or []):
        names = ", ".join(code)
        if no_code:
            raise UsageError(f"{pipeline} names code, and --no-code refuses it: {names}")
        say(f"{pipeline} imports and runs code: {names} (--no-code refuses such a pipeline)")
    if rehearse:
        if plan or only:
            raise UsageError("--rehearse goes alone: leave out --plan and --only")
        _rehearse(pipeline, overrides or [], warehouse, (gpu, price, assume or []), json)
        return
    if json or assume or price is not None:
        raise UsageError("--json, --assume and --price go with --rehearse")
    config, stages = load_pipeline(pipeline, overrides or [])
    with _context(warehouse or Path(config.warehouse)) as context:
        line = Pipeline(config, stages, context)
        if plan:
            from curate.pipeline.checks import check_stages
            from curate.pipeline.drawing import draw, planned

            output(draw(config.name, config.description, planned(line)))
            check_stages(line.unfinished())
            return
        done = line.run(only or [])
    tables = [d.facts["table"] for d in done.values() if "table" in d.facts]
    for table in tables:
        output("\n" + table)
    if config.queries and not only:
        where = (
            ""
            if context.warehouse.root == HERE.absolute()
            else f" -w {warehouse or config.warehouse}"
        )
        output("\nQuery the data yourself:")
        for query in config.queries:
            output(f'  curate sql{where} "{" ".join(query.split())}"')


def _rehearse(
    pipeline: str,
    overrides: list[str],
    warehouse: Path | None,
    bill: tuple[str, float | None, list[str]],
    json: bool,
) -> None:
    """Rehearse a pipeline and print the bill. Exit code 2 if the real run would fail."""
    from curate.rehearsal import show
    from curate.rehearsal.assumptions import assumed
    from curate.rehearsal.job import rehearse

    gpu, assume = assumed(*bill)
    result = rehearse(pipeline, overrides, gpu, assume, warehouse)
    if json:
        print(show.as_json(result))
    else:
        output(show.text(result))
    if result.faults:
        raise typer.Exit(2)


@app.command()
def report(
    overrides: Overrides = None,
    config: ConfigFile = None,
    warehouse: WarehouseDir = HERE,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file [report.html in the warehouse].")
    ] = None,
    corpus: Annotated[
        list[str] | None, typer.Option("--corpus", help="Only this corpus (may be repeated).")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Traces to show: a SQL condition (may be repeated)."),
    ] = None,
) -> None:
    """Write one HTML page: pipeline, evaluation, training, funnel, signals, and traces to read."""
    from curate.config import validate
    from curate.report import job

    data = _read(config, overrides)
    data |= {k: v for k, v in (("out", str(out) if out else None), ("corpora", corpus)) if v}
    if where:
        data["where"] = {**data.get("where", {}), **{condition: condition for condition in where}}
    with _context(warehouse) as context:
        output(job.run(validate(job.ReportConfig, data, str(config or "report")), context).summary)


@app.command()
def watch(
    place: Annotated[
        Path | None,
        typer.Argument(
            help="The warehouse; by default that of --warehouse.",
            metavar="[WAREHOUSE]",
            autocompletion=completion.warehouses,
        ),
    ] = None,
    warehouse: WarehouseDir = HERE,
    port: Annotated[
        int, typer.Option("--port", help="Port on 127.0.0.1; 0: any free one.", min=0, max=65535)
    ] = 8642,
    traces: Annotated[
        int, typer.Option("--traces", help="Newest traces to show.", min=1, max=2000)
    ] = 60,
) -> None:
    """Serve the report page live, on this machine only, while jobs run; Ctrl-C ends it.

    It reads the warehouse and writes nothing.
    """
    from curate.report import serve

    serve.watch(parse_root(place or warehouse), port, traces)


@app.command()
def sql(
    query: Annotated[str | None, typer.Argument(help="A query; without one, a prompt.")] = None,
    warehouse: WarehouseDir = HERE,
    format: Annotated[
        str, typer.Option("--format", "-f", help="table, csv, json or parquet.")
    ] = "table",
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            help="Read the query from a file, or a saved query by name.",
            autocompletion=completion.queries,
        ),
    ] = None,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the query read files outside the warehouse.")
    ] = False,
    guard_formulas: Annotated[
        bool,
        typer.Option(
            "--guard-formulas", help="For csv: text that a spreadsheet would run gets a leading '."
        ),
    ] = False,
) -> None:
    """Query the warehouse in SQL. Views: annotated, problem_rates, policy_steps, lineage and the
    tables.

    A query reads the warehouse and nothing else; it writes nothing.
    """
    gc.disable()  # imports leave no garbage: searching for it takes a tenth of the start-up
    from curate.console.query import run_query, saved_query

    gc.enable()
    if format not in ("table", "csv", "json", "parquet"):
        raise UsageError(f"--format {format}: choose table, csv, json or parquet")
    if file:
        if query is not None:
            raise UsageError("give a query or --file, not both")
        query = saved_query(file)
    if query is None:
        from curate.console.prompt import interactive

        interactive(warehouse, allow_files=allow_files)
    else:
        run_query(warehouse, query, format, allow_files=allow_files, guard_formulas=guard_formulas)


@app.command()
def show(
    trace_id: Annotated[str, typer.Argument(help="The id, or its beginning.")],
    warehouse: WarehouseDir = HERE,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Show its prompt and every column, too.")
    ] = False,
) -> None:
    """Show one trace: where it is from, its verdict, signals, question and completion."""
    from curate.console.show import show_trace

    output(show_trace(warehouse, trace_id, everything))


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="Parquet, CSV or JSONL with columns gold and prediction.")
    ] = None,
    gold: Annotated[str | None, typer.Option("--gold", help="The right answer.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", help="The text to judge.")] = None,
    verifier: Annotated[
        str, typer.Option("--verifier", help="math, choice, exact, text, procedural, code.")
    ] = "math",
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the file with its verdicts.")
    ] = None,
) -> None:
    """Judge an answer against a reference: correct, wrong or unverifiable."""
    from curate.verify.command import cli_verify

    if file and out:
        _check_out(out, [file])
    if out and not file:
        raise UsageError("--out goes with a file of answers")
    output(cli_verify(gold, answer, verifier, file, out))


@app.command()
def lineage(
    name: Annotated[
        str,
        typer.Argument(
            help="A model's hash or name, a corpus, a trace_id, or table/dataset/version.",
            autocompletion=completion.anything,
        ),
    ],
    warehouse: WarehouseDir = HERE,
) -> None:
    """Show the origin of a model, corpus, trace or version: versions, configs, counts and code."""
    from curate.warehouse.lineage import format_lineage

    output(format_lineage(_context(warehouse).warehouse, name))


@app.command()
def check(
    warehouse: WarehouseDir = HERE,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Move damaged and foreign files away; reopen versions that lost a part.",
        ),
    ] = False,
) -> None:
    """Compare every file of the warehouse with its record. Exit code 1 if something is wrong.

    After --repair, run the commands that made the data again: they write the missing parts.
    """
    from curate.warehouse import check as checking

    root = parse_root(warehouse)
    report = checking.check(root)
    output(checking.describe(report, root))
    if repair and report.damages:
        moved = checking.repair(root, report.damages)
        report = checking.check(root)
        place = url_of(root / checking.QUARANTINE)
        output(f"{counted(len(moved), 'file')} moved to {place}; checked again:")
        output(checking.describe(report, root))
    if report.damages:
        raise typer.Exit(1)


@app.command()
def merge(
    warehouse: WarehouseDir = HERE,
    table: Annotated[str | None, typer.Option("--table", help="Only this table.")] = None,
) -> None:
    """Merge small Parquet parts of finished jobs into large ones; no row changes."""
    from curate.warehouse import schemas
    from curate.warehouse.latest import link_latest
    from curate.warehouse.merge import merge as merge_dataset

    wh = _context(warehouse).warehouse
    if not wh.exists():
        raise UsageError(f"no warehouse at {url_of(wh.root)}: name one with --warehouse")
    if table and table not in schemas.TABLES:
        raise UsageError(f"no table '{table}': choose one of {', '.join(schemas.TABLES)}")
    for name in [table] if table else ["traces", "rollouts", "metrics", "jobs", "models"]:
        for dataset in sorted({v.dataset for v in wh.versions(name)}):
            merged = merge_dataset(wh, name, dataset)
            if merged and name == "corpora":
                link_latest(wh, dataset)
            if merged:
                parts = counted(len(merged.parts()), "part")
                output(f"{merged.ref}: {counted(merged.manifest['rows'], 'row')} in {parts}")


@app.command()
def schema(
    name: Annotated[
        str,
        typer.Argument(
            help="pipeline, rules, or a kind of stage.", autocompletion=completion.schemas
        ),
    ] = "pipeline",
    out: Annotated[
        Path | None, typer.Option("--out", help="A file to write instead of printing it.")
    ] = None,
) -> None:
    """Print the JSON Schema of a config, by which editors complete and check YAML."""
    from curate.atomic import write_whole
    from curate.pipeline.json_schema import text

    if out is None:
        print(text(name), end="")
        return
    write_whole(out, text(name))
    output(f"{out}: put `# yaml-language-server: $schema={out}` at the top of a config")


@app.command()
def version() -> None:
    """Print the version of curate."""
    from curate.version import code_version

    output(code_version())


def main() -> None:
    """Entry point: an error that a user can cause is one message and an exit code."""
    try:
        code = app(prog_name="curate", standalone_mode=False)
        if code == 130:  # typer's exit code for Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except CurateError as error:
        sys.stdout.flush()
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: what finished is committed; run the same command to resume",
            file=sys.stderr,
        )
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        say(f"error: this needs {package}: {install(EXTRAS[package])}")
        sys.exit(1)
    except OSError as error:
        if (message := _os_message(error)) is None:
            raise
        say(f"error: {message}")
        sys.exit(1)
    except Exception as error:
        if _names_full_disk(error):
            say(f"error: {DISK_FULL}")
            sys.exit(1)
        # typer vendors click: its exceptions are recognised by duck typing
        name = type(error).__name__
        if name == "Abort":
            sys.exit(1)
        if name == "Exit":
            sys.exit(getattr(error, "exit_code", 0))
        if not hasattr(error, "format_message"):
            raise
        if name == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(2)
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "curate"
        message = error.format_message().rstrip(".")
        say(f"error: {message}{'' if message.endswith('?') else ';'} see `{command} --help`")
        sys.exit(2)


DISK_FULL = (
    "the disk is full; what was committed is intact: free some space and run the same command again"
)


def _names_full_disk(error: Exception) -> bool:
    """Whether an error's text names a full disk: Polars and DuckDB wrap the system's errors."""
    return "No space left on device" in str(error) or "os error 28" in str(error)


def _os_message(error: OSError) -> str | None:
    """Message for a file system error that the user can fix, or None for any other."""
    from curate.atomic import disk_full

    name = error.filename or "while writing"
    if disk_full(error):
        return (
            f"the disk is full ({name}); what was committed is intact: free some space and run the "
            "same command again"
        )
    if _names_full_disk(error):  # Polars raises OSError without a number
        return DISK_FULL
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        return f"{name}: a file is where a folder is needed, or the reverse; name another place"
    if isinstance(error, PermissionError):
        return f"{name}: permission denied"
    if error.errno == errno.EROFS:
        return f"cannot write to {name}: the file system is read-only; name another place"
    return None


if __name__ == "__main__":
    main()
