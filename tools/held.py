"""Run the tests of hostile input and faults, and write the table "tried / held" into SECURITY.md.

python tools/held.py                 # all areas; several minutes
python tools/held.py SQL Servers     # areas that contain a word; other rows stay as they are
python tools/held.py --check         # fails if a probe does not hold, and writes nothing
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- held: start -->", "<!-- held: end -->"
AREAS = {
    "SQL of others: statements, files, options, names": ["tests/warehouse/test_sql.py"],
    "Damaged, foreign, missing and duplicated files": ["tests/warehouse/test_check.py"],
    "Code named by a pipeline or a row": [
        "tests/pipeline/test_code.py",
        "tests/test_registry.py",
    ],
    "Checkpoints of others": ["tests/train/test_checkpoint_safety.py"],
    "Terminal, tables, CSV": ["tests/test_visible.py"],
    "Report page": [
        "tests/report/test_html.py",
        "tests/report/test_report.py",
        "tests/report/test_browser.py",
    ],
    "Servers": ["tests/engines/test_limits.py", "tests/engines/test_openai_bounds.py"],
    "Bombs in YAML and data files": ["tests/test_bombs.py"],
    "Programs of models (sandbox)": [
        "tests/verify/code/test_sandbox.py",
        "tests/verify/code/test_seccomp.py",
    ],
    "Whole files, owners of temporary names": ["tests/test_atomic.py"],
    "Kills, full and read-only disks, descriptors, clock, paths": [
        "tests/test_faults.py",
        "tests/test_command_kills.py",
    ],
}


def counts(paths: list[str]) -> Counter[str]:
    """Number of probes by outcome: tried, held, skipped."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *paths]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        result: Counter[str] = Counter()
        for case in ET.parse(report).iter("testcase"):
            outcome = {child.tag for child in case}
            result["skipped" if "skipped" in outcome else "tried"] += 1
            result["held"] += not outcome & {"failure", "error", "skipped"}
        return result


def written(text: str) -> dict[str, list[int]]:
    """Counts of each area in the table of the page: tried, held, skipped."""
    rows = {}
    for line in text.split(START)[1].split(END)[0].splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in AREAS and len(cells) == 3:
            rows[name] = [int(cell) for cell in cells]
    return rows


def main() -> None:
    words = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    page = ROOT / "SECURITY.md"
    text = page.read_text(encoding="utf-8")
    rows, failed = written(text), 0
    for area, paths in AREAS.items():
        if words and not any(word.lower() in area.lower() for word in words):
            continue
        result = counts(paths)
        rows[area] = [result["tried"], result["held"], result["skipped"]]
        failed += result["tried"] - result["held"]
        print(f"{area}: {result['held']} of {result['tried']} held", flush=True)
    lines = ["| area | tried | held | not run there |", "|---|---|---|---|"]
    for area in AREAS:
        cells = rows.get(area) or ["not run yet", "", ""]
        lines.append(f"| {area} | {' | '.join(map(str, cells))} |")
    if "--check" not in sys.argv:
        head, rest = text.split(START)
        tail = rest.split(END)[1]
        page.write_text(f"{head}{START}\n{chr(10).join(lines)}\n{END}{tail}", encoding="utf-8")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
