"""Colour and dash of each arm, the same in every figure.

The six published arms have colours of Okabe & Ito and solid lines. These colours can be told apart
under every kind of colour blindness (``tests/plots/test_colours.py``). All other arms are dashed,
in a shade of the published arm they derive from; arms of the pipeline ``zoo`` are purple.

Source: Okabe & Ito, *Color Universal Design* (2008).
"""

from __future__ import annotations

from typing import NamedTuple

from adaptive_opt.study import get_arm

__all__ = ["DASHES", "Style", "arm_style"]

DASHES: dict[str, tuple[float, ...]] = {
    "solid": (),
    "dash": (6, 2),
    "dot": (1.5, 1.5),
    "dash-dot": (6, 2, 1.5, 2),
    "long": (12, 3),
    "dash-dot-dot": (6, 2, 1.5, 2, 1.5, 2),
    "short": (3, 1.5),
    "short-dot": (3, 1.5, 1.5, 1.5),
    "long-dot": (12, 3, 1.5, 3),
    "dash-dash-dot": (6, 2, 6, 2, 1.5, 2),
    "long-dash": (12, 2, 4, 2),
}
"""Lengths of dashes and gaps, in line widths."""


class Style(NamedTuple):
    """Line style of an arm: a hex colour and a key of :data:`DASHES`."""

    colour: str
    dash: str = "solid"


_SHADES = {
    "sgdm": ("#000000", "#777777"),
    "adam": ("#0072B2", "#004A75"),
    "sophia": ("#E69F00", "#A87400"),
    "sadh": ("#56B4E9", "#206C96"),
    "ssdh": ("#009E73", "#00593F"),
    "ssvp": ("#D55E00", "#8F3F00"),
    "zoo": ("#CC79A7", "#882255"),
}
"""For each family, the main colour and a second shade."""

_LADDER = {
    "exact": (0, "dash"),
    "permuted": (0, "dot"),
    "per_tensor": (0, "dash-dot"),
    "per_model": (1, "dash"),
    "squared_gradient": (1, "dot"),
    "constant": (1, "dash-dot"),
    "gauss_newton": (0, "short-dot"),
    "empirical_fisher": (1, "short-dot"),
    "diagonal": (0, "short"),
    "layers": (1, "short"),
    "whole": (0, "long-dot"),
    "whole_gauss_newton": (1, "long-dot"),
    "probes_4": (0, "short"),
    "probes_16": (1, "short"),
    "period_1": (0, "long-dot"),
    "period_3": (1, "long-dot"),
    "period_30": (0, "dash-dash-dot"),
    "period_100": (1, "dash-dash-dot"),
    "batch_4": (0, "long-dash"),
    "batch_16": (1, "long-dash"),
}
_OTHER = {
    "sophia_g": ("sophia", 1, "long"),
    "ssvp_cumulative": ("ssvp", 0, "dash"),
    "sgd": ("sgdm", 0, "dash"),
    "custom": ("sgdm", 1, "dash-dot-dot"),
    "adamw": ("adam", 0, "long"),
    "amsgrad": ("adam", 0, "dash-dot-dot"),
    "nadam": ("adam", 1, "dash-dot-dot"),
    "adahessian": ("zoo", 0, "long"),
    "muon": ("zoo", 0, "dash-dot-dot"),
    "soap": ("zoo", 1, "long"),
    "shampoo": ("zoo", 0, "dot"),
    "schedule_free": ("zoo", 1, "dash-dot-dot"),
    "prodigy": ("zoo", 0, "dash"),
}


def arm_style(arm: str) -> Style:
    """Colour and dash of an arm; dotted grey for an arm without a style.

    Example:
        >>> arm_style("ssdh"), arm_style("ssdh_permuted")
        (Style(colour='#009E73', dash='solid'), Style(colour='#009E73', dash='dot'))
    """
    if arm in _OTHER:
        family, shade, dash = _OTHER[arm]
        return Style(_SHADES[family][shade], dash)
    if arm in _SHADES:
        return Style(_SHADES[arm][0])
    parent = get_arm(arm).tuned_as
    rung = _LADDER.get(arm.removeprefix(f"{parent}_"))
    if parent not in _SHADES or rung is None:
        return Style("#777777", "dot")
    return Style(_SHADES[parent][rung[0]], rung[1])
