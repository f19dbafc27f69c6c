"""The information ladder: what the gain of curvature is made of.

The same step rule is given less and less of the curvature. Each comparison of a rung with the
one below it asks whether what was taken away had done anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["STEPS", "Step", "ladder_arms", "made_of"]


@dataclass(frozen=True)
class Step:
    """Two neighbouring rungs.

    Attributes:
        upper, lower: suffixes of the arms' names; empty: the estimate itself.
        part: what the lower one lacks, in a word that :func:`made_of` uses.
        question: in full.
    """

    upper: str
    lower: str
    part: str
    question: str


STEPS = (
    Step("_exact", "", "precision", "does the exact diagonal do better than its estimate?"),
    Step("", "_permuted", "coordinate", "does it matter which coordinate has which curvature?"),
    Step("_permuted", "_per_tensor", "spread", "do unequal values within a tensor matter at all?"),
    Step("_per_tensor", "_per_model", "layer", "does it matter which tensor has which curvature?"),
    Step("_per_model", "_constant", "magnitude", "does the size of curvature in time matter?"),
    Step("", "_squared_gradient", "Hessian", "is it more than the square of the gradient?"),
)
"""From the most to the least that is known; the last one asks about the source."""


def ladder_arms(parent: str) -> list[str]:
    """An arm and its placebos, by name, in the order of the steps."""
    names = [parent + suffix for step in STEPS for suffix in (step.upper, step.lower)]
    return list(dict.fromkeys(names))


def made_of(parent: str, verdicts: Sequence[tuple[Step, str]]) -> str:
    """One sentence on what the gain of an arm is made of, from its steps' verdicts.

    Args:
        parent: label of the arm.
        verdicts: of ``upper`` against ``lower``: ``faster`` says that the part matters,
            ``equivalent`` that it does not.

    Example:
        >>> print(made_of("SSDH", [(STEPS[1], "equivalent"), (STEPS[4], "faster")]))
        The gain of SSDH is made of magnitude; coordinate adds nothing.
    """
    parts = {
        word: [step.part for step, verdict in verdicts if verdict == word and step is not STEPS[0]]
        for word in ("faster", "equivalent", "slower", "undecided")
    }
    said = []
    if parts["faster"]:
        said.append(f"the gain of {parent} is made of {_listed(parts['faster'])}")
    else:
        said.append(f"no part of the curvature of {parent} is shown to gain anything")
    if parts["equivalent"]:
        said.append(f"{_listed(parts['equivalent'])} adds nothing")
    if parts["slower"]:
        said.append(f"{_listed(parts['slower'])} does harm")
    if parts["undecided"]:
        said.append(f"{_listed(parts['undecided'])} undecided")
    if (STEPS[0], "faster") in verdicts:  # which the arm itself does not have
        said.append("the exact diagonal would do better")
    text = "; ".join(said) + "."
    return text[0].upper() + text[1:]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
