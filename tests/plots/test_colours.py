"""Arms can be told apart with normal and with deficient colour vision.

Colour blindness is simulated as in Machado, Oliveira & Fernandes, *A Physiologically-based Model
for Simulation of Color Vision Deficiency* (2009), severity 1. Differences of colour are those of
CIE 1976, where 2.3 is just noticeable.
"""

from itertools import combinations

import numpy as np
import pytest

from adaptive_opt.plots.colours import DASHES, arm_style
from adaptive_opt.study import ARMS, published_arms

VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(  # of linear sRGB
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(colour, vision):
    """CIE L*a*b* coordinates of a hex colour, as seen with a kind of vision."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = TO_XYZ @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / TO_XYZ.sum(1)
    delta = 6 / 29
    f = np.where(seen > delta**3, np.cbrt(seen), seen / (3 * delta**2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one, other, vision):
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


def test_lab_of_known_colours():
    assert lab("#ffffff", "normal") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#ff0000", "normal") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    # Red and green of equal lightness look alike to the red-green blind.
    assert difference("#c0504d", "#588e2b", "normal") > 70
    assert difference("#c0504d", "#588e2b", "deuteranopia") < 20


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("pair", list(combinations(published_arms(), 2)), ids="-".join)
def test_published_arms_differ_in_colour(pair, vision):
    one, other = map(arm_style, pair)
    assert one.dash == other.dash == "solid"
    assert difference(one.colour, other.colour, vision) >= 12


@pytest.mark.parametrize("vision", VISION)
def test_all_arms_differ_in_colour_or_dash(vision):
    for a, b in combinations(ARMS, 2):
        one, other = arm_style(a.name), arm_style(b.name)
        if one.dash == other.dash:
            assert difference(one.colour, other.colour, vision) >= 12, (a.name, b.name)


def test_colours_can_be_read_on_white():
    for arm in ARMS:
        assert lab(arm_style(arm.name).colour, "normal")[0] < 75


def test_dashes_are_unique_and_ladders_keep_the_hue_of_their_parent():
    assert len(set(DASHES.values())) == len(DASHES)
    for arm in ARMS:
        style = arm_style(arm.name)
        assert (style.dash == "solid") == arm.published
        if arm.kind == "ladder":
            own, parent = lab(style.colour, "normal"), lab(arm_style(arm.tuned_as).colour, "normal")
            hues = [np.degrees(np.arctan2(c[2], c[1])) for c in (own, parent)]
            assert abs((hues[0] - hues[1] + 180) % 360 - 180) < 25
