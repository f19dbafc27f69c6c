"""A colour for each arm, the same in every figure.

The published six take the colours of Okabe & Ito, which stay apart under the common kinds
of colour blindness; a placebo takes its parent's and is drawn dashed.
"""

from __future__ import annotations

from adaptive_opt.study import get_arm

__all__ = ["arm_colour", "arm_dashed"]

_COLOURS = {
    "sgdm": "#000000",
    "adam": "#0072B2",
    "sophia": "#E69F00",
    "sadh": "#56B4E9",
    "ssdh": "#009E73",
    "ssvp": "#D55E00",
}
_LADDER = {
    "exact": "#332288",
    "permuted": "#CC79A7",
    "per_tensor": "#AA4499",
    "per_model": "#882255",
    "squared_gradient": "#999933",
    "constant": "#888888",
}
_OTHER = {
    "sgd": "#666666",
    "adamw": "#44AA99",
    "amsgrad": "#117733",
    "nadam": "#6699CC",
    "custom": "#CC6677",
    "ssvp_cumulative": "#AA7744",
    "adahessian": "#882255",
    "muon": "#AA4499",
    "soap": "#332288",
    "schedule_free": "#999933",
    "prodigy": "#DDAA33",
}


def arm_colour(arm: str) -> str:
    """Hex colour of an arm; grey for one that has none yet."""
    named = {**_COLOURS, **_OTHER}
    if arm in named:
        return named[arm]
    return _LADDER.get(arm.removeprefix(f"{get_arm(arm).tuned_as}_"), "#555555")


def arm_dashed(arm: str) -> bool:
    """Whether an arm is drawn dashed."""
    return get_arm(arm).kind == "ladder"
