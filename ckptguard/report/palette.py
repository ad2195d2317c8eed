"""One set of colours for pages and for figures in files, told apart with every kind of colour vision.

The hues are those of Okabe and Ito (Color Universal Design, 2008), darkened until each stands out from white paper by
a contrast of 3 or more, and lightened for dark pages. A second sign, the marker, goes with every colour, for print in
grey.
"""

from __future__ import annotations

LIGHT = ("#0072b2", "#c44e00", "#00805a", "#a3488c", "#8a6a00", "#4b5663", "#2b8cc4", "#7d2b1e")
"""Series on white, in order; series beyond the last begin again with another marker."""

DARK = ("#5ab4ee", "#ff9a52", "#3fd3a4", "#eba3d2", "#efc348", "#b9c3ce", "#9ad4f7", "#f0978a")
"""The same series on black."""

MARKERS = ("circle", "square", "triangle", "diamond", "plus", "cross", "inverted", "pentagon", "hexagon")
"""One for every series, in order; nine markers and eight colours give 72 pairs."""

HEAT_LIGHT = ("#fdf6ee", "#fde3c8", "#fdcb9b", "#fbab67", "#f18a3c", "#dd6a1c", "#bb4d0b", "#8f3706", "#5e2304")
"""No loss to the largest loss, on white."""

HEAT_DARK = ("#1e2024", "#3a2a1f", "#583420", "#7c421f", "#a3541f", "#c96c27", "#e88b41", "#f9b173", "#ffdcb5")
"""The same on black: what stands out is what is lost."""

STEPS = len(HEAT_LIGHT)


def heat_step(share: float) -> int:
    """The step of the heat colours for a share of the way from the least to the most, 0 to 1."""
    return min(STEPS - 1, max(0, int(share * STEPS)))
