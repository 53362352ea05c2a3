"""Structure of the package: imports go one way, without cycles; heavy packages stay lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import curate

PACKAGE = Path(curate.__file__).parent

# From the ground up. A package may import only those before it in this list, never one after it.
FLOORS = """
    errors shipped extras records version visible memory cores progress config registry atomic files
    store prompts engines warehouse verify signals job problems rewards exploits
    annotate imports filter generate report evaluate train cluster
    pipeline rehearsal console api llm cli __main__
""".split()

HEAVY = ("torch", "transformers", "vllm", "datasets", "openai", "ray")


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        trees[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING:`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from runtime_nodes(node)


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """The modules of the package that each module imports, also inside functions."""
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in runtime_nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {t if t in trees else node.module for t in targets}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
        graph[name] = {target for target in graph[name] if target in trees and target != name}
    return graph


def package_of(module: str) -> str:
    """`curate.verify.math.parser` belongs to `verify`."""
    return module.split(".")[1] if "." in module else ""


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    graph = imports(modules())
    assert len(graph) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"import cycle: {' -> '.join(error.args[1])}") from None


def test_the_cycle_check_sees_imports_inside_functions() -> None:
    source = {"curate.a": "def f():\n    from curate import b", "curate.b": "import curate.a"}
    trees = {"curate": ast.parse(""), **{name: ast.parse(text) for name, text in source.items()}}
    assert imports(trees) == {"curate": set(), "curate.a": {"curate.b"}, "curate.b": {"curate.a"}}


def test_no_package_imports_from_a_higher_floor() -> None:
    floor = {name: number for number, name in enumerate(FLOORS)}
    graph = imports(modules())
    unknown = {package_of(m) for m in graph} - set(floor) - {""}
    assert not unknown, f"packages without a floor: {sorted(unknown)}"
    upward = [
        f"{source} -> {target}"
        for source, targets in graph.items()
        for target in targets
        if package_of(source)
        and package_of(target)
        and floor[package_of(target)] > floor[package_of(source)]
    ]
    assert not upward, upward


def test_heavy_packages_are_not_imported_by_the_command_line() -> None:
    script = (
        "import sys, curate.cli, curate.api, curate.pipeline.runner, curate.train.config;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert output.stdout.strip() == "[]", output.stdout + output.stderr


def test_floors_are_listed_once() -> None:
    assert all(first != second for first, second in pairwise(sorted(FLOORS)))
