"""Write docs/licences.md: the licences of all packages that `curate` and its extras bring along.

    python tools/licences.py            # write the page
    python tools/licences.py --check    # fail if a package has an unknown or a strong licence

They come from the metadata of the packages installed here, and from the headings of their licence
files where the metadata has none. Packages of extras that are not installed are not on the page.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
OWN = "curate-reasoning"  # the name of the distribution
# Headings of licence texts, where a package declares nothing.
HEADINGS = {
    r"apache license\s+version 2\.0": "Apache-2.0",
    r"mit license|permission is hereby granted, free of charge": "MIT",
    r"redistribution and use in source and binary forms": "BSD",
    r"mozilla public license": "MPL-2.0",
}
# Used as they are, by linking or as a program of their own; they ask something of those who change
# or copy them.
WEAK = re.compile(r"\bL?GPL|\bMPL|Mozilla|\bEPL|\bCDDL", re.IGNORECASE)
STRONG = re.compile(r"\bA?GPL", re.IGNORECASE)
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Package:
    """An installed package. `wanted_by`: `curate`, its extras, or the package that needs it."""

    name: str
    version: str
    licence: str
    wanted_by: str


def licence_of(package: Distribution) -> str:
    """The licence that a package declares, or that its licence file is headed by."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition("::")[2].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::") and line.count("::") > 1
    ]
    if classifiers:
        return ", ".join(classifiers)
    field = (metadata.get("License") or "").strip()
    if field and len(field) < 60:
        return field
    texts = [field] if field else []
    for file in package.files or []:
        if re.match(r"(LICEN[CS]E|COPYING)", file.name, re.IGNORECASE):
            path = Path(str(package.locate_file(file)))
            texts += [path.read_text("utf-8", "replace")] if path.is_file() else []
    for text in texts:
        for heading, name in HEADINGS.items():
            if re.search(heading, text[:3000], re.IGNORECASE):
                return f"{name} (by its text)"
    return UNKNOWN


def packages() -> list[Package]:
    """Everything that the project's requirements reach and that is installed, by name."""
    own = distribution(OWN)
    extras = own.metadata.get_all("Provides-Extra") or []
    lines = own.requires or []
    pending = [(line, extra, _origin(line)) for line in lines for extra in ["", *extras]]
    seen: dict[tuple[str, str], None] = {}
    result: dict[str, Package] = {}
    while pending:
        line, extra, origin = pending.pop(0)
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ["", *sorted(requirement.extras)]:
            if (name, wanted) in seen:
                continue
            seen[name, wanted] = None
            try:
                package = distribution(name)
            except PackageNotFoundError:
                continue
            if name != OWN and name not in result:
                result[name] = Package(name, package.version, licence_of(package), origin)
            source = origin if name == OWN else name
            pending += [(inner, wanted, source) for inner in package.requires or []]
    return [result[name] for name in sorted(result)]


def _origin(line: str) -> str:
    match = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
    return f"curate[{match[1]}]" if match else "curate"


def page(rows: list[Package]) -> str:
    """The page as Markdown."""
    counts = Counter(row.licence for row in rows).most_common()
    special = [row for row in rows if row.licence == UNKNOWN or WEAK.search(row.licence)]
    direct = [row for row in rows if row.wanted_by.startswith("curate")]
    lines = [
        "# Licences",
        "",
        "`curate` is under Apache-2.0. `python tools/licences.py` writes this page from the "
        "metadata of installed packages:",
        f"{len(rows)} packages, of which {len(direct)} are requirements of `curate` or its extras "
        "and the others come with those.",
        "",
        "Not checked: whether the metadata is right, what wheels hold besides (compiled "
        "libraries), extras that were not",
        "installed, and known vulnerabilities, whose lists need a network. Where there is one: "
        "`pip install pip-audit && pip-audit`.",
        "",
        "## To look at",
        "",
        "Packages under a licence that asks something of those who change or copy them, or "
        "without any statement.",
        "",
        *_table(special),
        "",
        "## Requirements of curate",
        "",
        *_table(direct),
        "",
        "## All, counted",
        "",
        "| licence | packages |",
        "|---|---|",
        *[f"| {name} | {count} |" for name, count in counts],
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[Package]) -> list[str]:
    head = ["| package | version | licence | wanted by |", "|---|---|---|---|"]
    return head + [
        f"| {row.name} | {row.version} | {row.licence} | {row.wanted_by} |" for row in rows
    ]


def main() -> None:
    rows = packages()
    bad = [row for row in rows if row.licence == UNKNOWN or STRONG.search(row.licence)]
    for row in bad:
        print(f"{row.name} {row.version}: {row.licence}")
    if "--check" in sys.argv:
        sys.exit(bool(bad))
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
