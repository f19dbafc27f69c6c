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
        part: what the lower one lacks, in a word.
        words: the same in a sentence.
        question: in full.
    """

    upper: str
    lower: str
    part: str
    words: str
    question: str


STEPS = (
    Step(
        "_exact",
        "",
        "precision",
        "the exact diagonal",
        "does the exact diagonal do better than its estimate?",
    ),
    Step(
        "",
        "_permuted",
        "coordinate",
        "which coordinate has which curvature",
        "does it matter which coordinate has which curvature?",
    ),
    Step(
        "_permuted",
        "_per_tensor",
        "spread",
        "the spread of curvature within a tensor",
        "do unequal values within a tensor matter at all?",
    ),
    Step(
        "_per_tensor",
        "_per_model",
        "layer",
        "which tensor has which curvature",
        "does it matter which tensor has which curvature?",
    ),
    Step(
        "_per_model",
        "_constant",
        "magnitude",
        "the overall scale",
        "does the size of curvature in time matter?",
    ),
    Step(
        "",
        "_squared_gradient",
        "Hessian",
        "the Hessian in place of the squared gradient",
        "is it more than the square of the gradient?",
    ),
)
"""From the most to the least that is known; the last one asks about the source."""


def ladder_arms(parent: str) -> list[str]:
    """An arm and its placebos, by name, in the order of the steps."""
    names = [parent + suffix for step in STEPS for suffix in (step.upper, step.lower)]
    return list(dict.fromkeys(names))


def made_of(parent: str, verdicts: Sequence[tuple[Step, str]]) -> str:
    """What the speed of an arm comes from, in plain words, from its steps' verdicts.

    Args:
        parent: label of the arm.
        verdicts: of ``upper`` against ``lower``: ``faster`` says that the part has an effect,
            ``equivalent`` that it has none.

    Example:
        >>> print(made_of("SSDH", [(STEPS[1], "equivalent"), (STEPS[4], "faster")]))
        SSDH's speed comes from the overall scale. No effect: which coordinate has which curvature.
    """
    parts = {
        word: [step.words for step, verdict in verdicts if verdict == word and step is not STEPS[0]]
        for word in ("faster", "equivalent", "slower", "undecided")
    }
    said = []
    if parts["faster"]:
        said.append(f"{parent}'s speed comes from {_listed(parts['faster'])}")
    else:
        said.append(f"No part of {parent}'s curvature is shown to make it faster")
    words = {"equivalent": "No effect", "slower": "Harmful", "undecided": "Undecided"}
    for word, label in words.items():
        if parts[word]:
            said.append(f"{label}: {'; '.join(parts[word])}")
    if (STEPS[0], "faster") in verdicts:  # which the arm itself does not have
        said.append("The exact diagonal would be faster than its estimate")
    return ". ".join(said) + "."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
