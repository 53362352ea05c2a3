"""Errors a user can cause: one message that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class CurateError(Exception):
    """A failure that the user can understand and correct. The CLI prints it without a traceback;
    exit code 1.
    """

    exit_code = 1


class UsageError(CurateError):
    """The command or its config was wrong before anything ran; exit code 2."""

    exit_code = 2


def did_you_mean(name: str, names: Collection[str]) -> str:
    """`; did you mean 'x'?` for the closest of `names`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"; did you mean '{close[0]}'?" if close else ""
