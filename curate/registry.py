"""Names to objects: what ships, what an installed package offers by entry point, or a dotted path
in a config.

A registry maps a short name to a dotted path `module:attribute`, so that nothing heavy is imported
before it is used. Users add their own without forking: an entry point in the group
`curate.<kind>`, or `module:name` in a config, where the module is installed, or is a file next to
the config or in the current folder.

Importing a module runs it. So a dotted path is taken from configs and commands, and never from
data: pass `data=True` for a name that comes from a row.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from curate.errors import UsageError, did_you_mean

# Folders of the configs that were read. In the environment, since verifier workers and engines are
# separate processes that import the same modules.
FOLDERS = "CURATE_IMPORT_FOLDERS"


def resolve(kind: str, name: str, builtin: Mapping[str, str], *, data: bool = False) -> Any:
    """The object called `name` of this `kind` ("engine", "verifier", "source", "recipe", …).
    UsageError if unknown.
    """
    if name in builtin:
        return load(builtin[name], kind)
    for point in entry_points(group=f"curate.{kind}"):
        if point.name == name:
            return _load_entry_point(kind, point)
    if ":" in name and not data:
        return load(name, kind)
    own = ", or your own as 'module:name'" if not data else ""
    raise UsageError(
        f"unknown {kind} '{name}': choose one of {', '.join(sorted(builtin))}{own}"
        f"{did_you_mean(name, builtin)}"
    )


def check(kind: str, name: str, builtin: Mapping[str, str], *, data: bool = False) -> None:
    """UsageError if `resolve` would not find the name. What ships is not loaded."""
    if name not in builtin:
        resolve(kind, name, builtin, data=data)


def load(path: str, kind: str) -> Any:
    """The object at `module:attribute`. UsageError with the reason if it cannot be loaded."""
    name, _, attribute = path.partition(":")
    try:
        module = _module(name)
    except Exception as error:  # whatever the user's own module raises while it is imported
        raise UsageError(f"cannot load the {kind} '{path}': {_reason(name, error)}") from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        hint = did_you_mean(attribute, names)
        raise UsageError(
            f"cannot load the {kind} '{path}': {getattr(module, '__file__', name)} has no "
            f"'{attribute}'{hint}"
        )
    return getattr(module, attribute)


def _load_entry_point(kind: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever the installed package raises while it is imported
        reason = _reason(point.module, error)
        raise UsageError(f"cannot load the {kind} '{point.name}': {reason}") from error


def add_folder(folder: str | Path) -> None:
    """Look for modules of dotted paths in this folder as well: that of a config."""
    path = str(Path(folder).absolute())
    if path not in _folders():
        os.environ[FOLDERS] = os.pathsep.join([*_folders(), path])


def _folders() -> list[str]:
    return [folder for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise  # the module exists, and needs one that does not
    # At the end of the path, and only when a config needs it: a file there never hides an
    # installed module.
    sys.path += [f for f in [*_folders(), os.getcwd()] if f not in sys.path]
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _reason(name: str, error: Exception) -> str:
    """One line about a failed import, with the file and line if the user's code raised."""
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        places = " or ".join(dict.fromkeys([*_folders(), os.getcwd()]))
        return f"no module '{error.name}' is installed or in {places}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    inside = "" if isinstance(error, ImportError) else f"{last.filename}:{last.lineno}: "
    return f"{inside}{type(error).__name__}: {error}"
