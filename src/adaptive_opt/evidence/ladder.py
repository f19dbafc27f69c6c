"""The information ladder: which part of the curvature makes an arm faster.

A ladder is a series of arms with the same step rule and less and less curvature information. Its
arms are called rungs. If a rung is faster than the next, the information removed had an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["STEPS", "Step", "ladder_arms", "made_of"]


@dataclass(frozen=True)
class Step:
    """Two neighbouring rungs.

    Attributes:
        upper, lower: suffixes of the arms' names; empty for the arm with the plain estimate.
        part: the information that only the upper rung has, in one word.
        words: the same for use in a sentence.
        question: the question that this comparison answers.
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
        "is the exact diagonal better than its estimate?",
    ),
    Step(
        "",
        "_permuted",
        "coordinate",
        "per-coordinate information",
        "does it matter which coordinate has which curvature?",
    ),
    Step(
        "_permuted",
        "_per_tensor",
        "spread",
        "the spread of curvature within a tensor",
        "does it matter that curvature differs within a tensor?",
    ),
    Step(
        "_per_tensor",
        "_per_model",
        "layer",
        "per-tensor information",
        "does it matter which tensor has which curvature?",
    ),
    Step(
        "_per_model",
        "_constant",
        "magnitude",
        "the overall curvature scale",
        "does the overall size of the curvature over time matter?",
    ),
    Step(
        "",
        "_squared_gradient",
        "Hessian",
        "the Hessian in place of the squared gradient",
        "is the Hessian better than the squared gradient?",
    ),
)
"""From most to least information; the last one replaces the source of the curvature."""


def ladder_arms(parent: str) -> list[str]:
    """Names of an arm and its placebos, from most to least information."""
    names = [parent + suffix for step in STEPS for suffix in (step.upper, step.lower)]
    return list(dict.fromkeys(names))


def made_of(parent: str, verdicts: Sequence[tuple[Step, str]], *, faster: bool = True) -> str:
    r"""Say which parts of the curvature make an arm faster.

    Args:
        parent: label of the arm.
        verdicts: steps, each with the verdict on its upper rung against its lower one. ``faster``
            means that the part has an effect, ``equivalent`` that it has none.
        faster: whether the arm is faster than the reference.

    Example:
        >>> text = made_of("SADH", [(STEPS[1], "undecided"), (STEPS[4], "faster")])
        >>> print(text.replace(". ", ".\n"))
        SADH's speed-up comes from the overall curvature scale.
        Per-coordinate information showed no measurable effect.
    """
    parts = {
        word: [step.words for step, verdict in verdicts if verdict == word and step is not STEPS[0]]
        for word in ("faster", "equivalent", "slower", "undecided")
    }
    if parts["faster"]:
        gain = "speed-up" if faster else "speed"
        sentences = [f"{parent}'s {gain} comes from {_listed(parts['faster'])}"]
    elif parts["equivalent"] or parts["slower"]:
        sentences = [f"No part of {parent}'s curvature information made it measurably faster"]
    else:
        sentences = [f"No part of {parent}'s curvature information showed a measurable effect"]
        parts["undecided"] = []  # that is all of them
    endings = {
        "equivalent": "made no difference",
        "slower": "slowed training down",
        "undecided": "showed no measurable effect",
    }
    for word, ending in endings.items():
        if parts[word]:
            text = f"{_listed(parts[word])} {ending}"
            sentences.append(text[0].upper() + text[1:])
    if (STEPS[0], "faster") in verdicts:  # the arm itself does not have this information
        sentences.append("The exact diagonal would be faster than its estimate")
    return ". ".join(sentences) + "."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
