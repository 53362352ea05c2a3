"""Errors a user can cause: one message that says what was wrong, where, and what to do."""

from __future__ import annotations


class CurateError(Exception):
    """A failure that the user can understand and correct. The CLI prints it without a traceback;
    exit code 1.
    """

    exit_code = 1


class UsageError(CurateError):
    """The command or its config was wrong before anything ran; exit code 2."""

    exit_code = 2
