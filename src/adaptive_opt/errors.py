"""The error that users see, and hints for its message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

__all__ = ["StudyError", "first_line", "nearest", "root_cause", "without_passwords"]


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


def root_cause(error: BaseException) -> str:
    """Return one line on the first cause of an error, without passwords."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return without_passwords(first_line(error))[:200]


def without_passwords(text: str) -> str:
    """Remove users and passwords from the URLs in a text.

    Example:
        >>> without_passwords("no answer from http://me:secret@example.org/api")
        'no answer from http://example.org/api'
    """
    return re.sub(r"//[^/\s]*@", "//", text)
