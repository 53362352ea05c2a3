"""Size of a job, for `--dry-run`: requests, tokens and cost, and the first prompt.

Nothing is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from curate.config import validate
from curate.engines.openai import OpenAIArgs, prices
from curate.engines.registry import choose, label
from curate.generate.plan import Plan
from curate.progress import counted

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = 200  # prompts whose tokens are counted
CHARS_PER_TOKEN = 4  # of English text, without a tokenizer
SHOWN = 600  # characters of the first prompt


def describe(plan: Plan) -> str:
    """The resolved plan as text."""
    config, units = plan.config, plan.units
    model = (
        f"{plan.model.name} ({plan.model.hash[:12]})" if plan.model else "none (worked solutions)"
    )
    form = f"form {units.template.form}" + (
        f", {len(units.examples)} worked examples" if units.examples else ""
    )
    lines = [f"recipe    {config.recipe}: template {units.template.name}, {form}"]
    if units.simple is not None:
        count = int(units.frame["simple"].sum())
        lines.append(
            f"          {count} simple problems without a chain of thought: template "
            f"{units.simple.name}"
        )
    lines.append(f"model     {model}, {_engine(plan)}" if plan.model else f"model     {model}")
    lines.append(
        f"problems  {len(units.frame)} {units.NOUN} {units.origin}"
        + (f", split {config.split}" if config.split else "")
    )
    lines.append(_samples(plan))
    lines += _tokens(plan) if plan.model else []
    committed = plan.family.committed(["problem_id"]).collect().height
    lines.append(f"family    {plan.family.family}: {counted(committed, 'row')} committed so far")
    if plan.model:
        text = units.prompt(plan.unit(0, ""), None)
        lines.append(
            "prompt    the first one" + (", before the chat template:" if plan.chat else ":")
        )
        lines += [
            "    " + line
            for line in (text if len(text) <= SHOWN else "…" + text[-SHOWN:]).splitlines()
        ]
    return "\n".join(lines)


def _engine(plan: Plan) -> str:
    """Engine and precision, with the reason for the choice."""
    assert plan.model is not None
    name, why = choose(plan.config.engine, plan.model.path)
    reason = f" ({why})" if plan.config.engine.name == "auto" and name == plan.engine.name else ""
    return f"engine {label(plan.engine)}{reason}"


def _samples(plan: Plan) -> str:
    config, units = plan.config, len(plan.units.frame)
    if config.adaptive is None or not config.adapts:
        return f"samples   {config.samples} per problem, {plan.requests} in all"
    least = units * min(config.adaptive.first, config.samples)
    rules = f" and kept by the rules {config.adaptive.rules}" if config.adaptive.rules else ""
    return (
        f"samples   until {config.adaptive.keep} per problem are correct{rules}, at most "
        f"{config.samples}: {least:,} to {plan.requests:,} in all"
    )


def _tokens(plan: Plan) -> list[str]:
    """Tokens and cost of all requests of the job, including finished ones."""
    limit = plan.config.sampling.max_tokens
    count, how = _counter(plan)
    rows = plan.units.frame.head(SAMPLE).iter_rows(named=True)
    shown = [plan.units.prompt(row, None) for row in rows]
    prompt = sum(map(count, shown)) / len(shown)
    typical = _typical_length(plan)
    usual = min(typical[0], limit) if typical else float(limit)
    lines = [
        f"tokens    prompts about {prompt * plan.requests:,.0f} ({prompt:.0f} each, {how}); "
        f"completions at most {plan.requests * limit:,} ({limit} each)"
    ]
    if typical:
        lines.append(
            f"          completions about {plan.requests * usual:,.0f}, at the {usual:.0f} of "
            f"{typical[1]}"
        )
    lines += _cost(plan, prompt, usual)
    return lines


def _counter(plan: Plan) -> tuple[Callable[[str], float], str]:
    """Return a function that counts the tokens of a text, and a note on its method."""
    assert plan.model is not None
    path = plan.model.path / "tokenizer.json"
    if path.is_file():
        try:
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(path))
            return lambda text: len(tokenizer.encode(text).ids), "by its tokenizer"
        except Exception:  # this version of the library cannot read the file; an estimate is enough
            pass
    return lambda text: len(text) / CHARS_PER_TOKEN, f"at {CHARS_PER_TOKEN} characters per token"


def _typical_length(plan: Plan) -> tuple[float, str] | None:
    """Mean tokens per completion of similar stored traces, and a note on which."""
    wh, model = plan.context.warehouse, plan.model
    if model is None or not wh.exists():
        return None
    for where, value, what in (
        ("dataset = ?", plan.family.family, "traces that this job has already"),
        ("model_hash = ? AND recipe <> 'grpo'", model.hash, "other traces of this model"),
    ):
        query = (
            f"SELECT avg(completion_tokens) FROM traces WHERE {where} AND finish_reason <> 'error'"
        )
        mean = wh.sql(query, [value]).item()
        if mean:
            return float(mean), what
    return None


def _cost(plan: Plan, prompt: float, usual: float) -> list[str]:
    """Cost by the prices of the engine; nothing if it has none."""
    if plan.engine.name != "openai" or plan.model is None:
        return []
    args = validate(OpenAIArgs, plan.engine.args, "engine.args")
    rate = prices(args, plan.model.name)
    if not rate.prompt and not rate.completion:
        return []
    limit, requests = plan.config.sampling.max_tokens, plan.requests

    def cost(tokens: float) -> float:
        return requests * (prompt * rate.prompt + tokens * rate.completion) / 1e6

    line = f"cost      at most {cost(limit):,.4g}"
    if usual < limit:
        line += f", about {cost(usual):,.4g} at the usual length"
    if args.budget:
        line += f"; the job stops at its budget of {args.budget:g}"
    return [line, *([f"          {rate.source}"] if rate.source else [])]
