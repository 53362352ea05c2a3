"""The documentation site: the reference page is up to date, and the site builds without a warning.

A strict build fails for a broken link, a missing anchor and a page that the navigation leaves out.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from curate.cli import app
from curate.warehouse import schemas

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
BASES = {"Config", "Source", "ProblemsConfig", "SFTConfig", "GRPOConfig"}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(heading: str) -> str:
    """The text below a heading of the reference page, up to the next one."""
    _, mark, rest = REFERENCE.partition(f"\n{heading}\n")
    assert mark, f"the page has no heading {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.M)[0]


def config_classes() -> set[str]:
    """Names of the config classes in the source, whatever imports them."""
    names = set()
    for file in (ROOT / "curate").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                names |= {node.name} if bases & BASES else set()
    return names


def test_the_reference_page_is_up_to_date() -> None:
    assert tool("reference").page() == REFERENCE, "run: python tools/reference.py"


def test_every_config_is_on_the_reference_page() -> None:
    on_page = set(re.findall(r"^#### (\w+)$", REFERENCE, flags=re.M))
    # Bases of others, whose keys are on the page with those of their subclasses.
    assert config_classes() - on_page == {"Source", "Mapped", "GRPOConfig"}


def test_every_command_is_on_the_reference_page() -> None:
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {f"### curate {name}" for name in names} <= set(REFERENCE.splitlines())
    assert "`--dry-run`" in section("### curate train sft")


def test_every_column_has_its_type_and_comment_on_the_reference_page() -> None:
    for table in schemas.TABLES:
        rows = re.findall(
            r"^\| `(\w+)`(?: \*)? \| (.+?) \| (.+) \|$", section(f"### Table {table}"), re.M
        )
        assert {name: kind for name, kind, _ in rows} == schemas.types(table)
        assert set(schemas.comments(table)) <= {name for name, _, meaning in rows if meaning}


def test_keys_have_type_limit_default_and_meaning() -> None:
    rows = section("#### SFTConfig")
    assert "| `epochs` | float, > 0 | `1.0` | Passes over the corpus" in rows
    assert "| `order` | `random` or `difficulty` | `random` |" in rows
    assert "| `model` | str | required |" in rows
    assert "| `checkpoint` | [CheckpointConfig](#checkpointconfig) | `{every: 50}` |" in rows


def test_every_page_is_in_the_navigation() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"^ +- .+: (\S+\.md)$", settings, flags=re.M)
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


# -- the site ------------------------------------------------------------------------------------


def build(folder: Path, out: Path, address: str = "") -> subprocess.CompletedProcess[str]:
    """Build the site of the project in `folder`, strictly."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install 'curate-reasoning[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "CURATE_REPOSITORY": address}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with the site's settings and one page of its own."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    head, _, _ = settings.partition("nav:\n  - Start")
    (tmp_path / "mkdocs.yml").write_text(head + "nav: [{Start: index.md}]\n")
    for folder in ("docs", "tools", "schemas"):
        (tmp_path / folder).mkdir()
    hook = (ROOT / "tools" / "site_links.py").read_text(encoding="utf-8")
    (tmp_path / "tools" / "site_links.py").write_text(hook)
    (tmp_path / "schemas" / "traces.sql").write_text("")
    return tmp_path


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "site" / f"{page.stem}.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](missing.md)", "missing.md"),
        ("[x](#missing)", "#missing"),
        ("[x](../schemas/missing.sql)", "../schemas/missing.sql"),
    ],
)
def test_a_broken_link_fails_the_build(project: Path, text: str, complaint: str) -> None:
    (project / "docs" / "index.md").write_text(f"# Start\n\n{text}\n")
    done = build(project, project / "site")
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.slow
def test_a_page_outside_the_navigation_fails_the_build(project: Path) -> None:
    (project / "docs" / "index.md").write_text("# Start\n")
    (project / "docs" / "lost.md").write_text("# Lost\n")
    done = build(project, project / "site")
    assert done.returncode != 0
    assert "lost.md" in done.stderr


@pytest.mark.slow
def test_a_link_out_of_docs_leads_to_the_repository_if_its_address_is_known(project: Path) -> None:
    (project / "docs" / "index.md").write_text(
        "# Start\n\n[columns](../schemas/traces.sql), [all](../schemas)\n"
    )
    assert build(project, project / "site", "https://example.org/owner/name").returncode == 0
    html = (project / "site" / "index.html").read_text()
    assert 'href="https://example.org/owner/name/blob/main/schemas/traces.sql"' in html
    assert 'href="https://example.org/owner/name/tree/main/schemas"' in html
    assert build(project, project / "site").returncode == 0
    assert "<p>columns, all</p>" in (project / "site" / "index.html").read_text()
