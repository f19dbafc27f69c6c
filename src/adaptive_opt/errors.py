"""The error that users see, and hints for its message."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["StudyError", "first_line", "nearest"]


class StudyError(ValueError):
    """An error that the user can correct, in a parameter, a file or a device.

    The message is one sentence with the cause and the remedy. The command line prints it without
    a traceback.
    """


def nearest(name: str, valid: Collection[str], otherwise: str = "") -> str:
    """Return a hint for an unknown name: the most similar valid one, or all of them.

    Args:
        name: the unknown name.
        valid: the valid names.
        otherwise: hint if no valid name is similar; empty: list all of them.

    Example:
        >>> nearest("sshd", ["adam", "ssdh"])
        "did you mean 'ssdh'?"
    """
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"valid: {', '.join(valid)}"


def first_line(error: object) -> str:
    """Return the first line of an error's text, or its class if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__
