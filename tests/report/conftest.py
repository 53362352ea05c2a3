"""A warehouse whose traces attack the page that shows them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from curate.job import Context
from curate.warehouse import Warehouse

# Each would run, load or break out somewhere if it were pasted as it is. The browser test looks for
# `pwned`.
HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 2</script>",
    "</template></div></main><script>window.pwned = 3</script>",
    "<img src=x onerror='window.pwned = 4'>",
    '"><svg onload="window.pwned = 5">',
    "<a href='javascript:window.pwned=6'>press</a> [press](javascript:window.pwned=7)",
    "$\\href{javascript:window.pwned=8}{x^2}$",
    "$\\text{</math><script>window.pwned = 9</script>}$",
    "<math><mtext></mtext><mglyph><style></math><img src onerror=window.pwned=10></style></mglyph>"
    "</math>",
    "<svg><foreignObject><iframe srcdoc='<script>parent.pwned = 11</script>'></iframe>"
    "</foreignObject></svg>",
    "<!--><script>window.pwned = 12</script>-->",
    "\\(\\style{background:url(https://example.org/leak)}{y}\\) \\(\\class{box}{z}\\)",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "&lt;script&gt; &#60;script&#62; \u202egnp.exe\x00\x1b[31m",
    "$" + "{" * 3000 + "x" + "}" * 3000 + "$ $\\frac{$ \\(\\left\\left\\(x\\)",
    "我们 let us compute the sum of all these numbers 然后 \\boxed{\\frac{1}{2}} "
    "and $x_1 + x_2 = 7$",
]
FAMILY = "f" * 24


@pytest.fixture
def hostile(made_once: Path, tmp_path: Path) -> Warehouse:
    """Two problems with all hostile texts as question, reasoning and answer; and a corpus."""
    return Warehouse(shutil.copytree(made_once, tmp_path / "wh"))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wh = Warehouse(tmp_path_factory.mktemp("hostile") / "wh")
    problems = [
        {
            "problem_id": f"p{i}",
            "question": f"What is 1 + {i}? {HOSTILE[i]}",
            "reference": str(1 + i),
            "verifier": "math",
            "source": HOSTILE[2],
            "split": "train",
        }
        for i in range(2)
    ]
    wh.write("problems", "hostile", problems, key=1)
    traces = [
        {
            "trace_id": f"{'ab'[p]}{i:031d}",
            "attempt": 0,
            "job_id": FAMILY,
            "problem_id": f"p{p}",
            "sample_index": i,
            "recipe": "r1-zero",
            "form": "r1-zero",
            "template": "plain@0",
            "model": HOSTILE[3],
            "model_hash": "m",
            "engine": "stub",
            "prompt": text,
            "completion": (
                f"<think> {text} so 1 + {p} = {1 + p} </think> "
                f"<answer> {1 + p} {text * (i % 2)} </answer>"
            ),
            "reasoning": f" {text} so 1 + {p} = {1 + p} ",
            "answer": f"{1 + p} {text if i % 2 else ''}".strip(),
            "finish_reason": "stop",
            "completion_tokens": 20 + i,
            "temperature": 1.0,
        }
        for p in range(2)
        for i, text in enumerate(HOSTILE)
    ]
    wh.write("traces", FAMILY, traces, key=2, parents=[v.ref for v in wh.versions("problems")])
    with Context(wh) as context:
        from curate.annotate import job as annotate
        from curate.filter import job

        annotate.run(annotate.AnnotateConfig(), context)
        job.run(job.FilterConfig(rules="cold-start", corpus="cold"), context)
    return wh.root
