"""The colours of light and dark pages, for style sheets and for charts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """The colours of a light or dark page."""

    name: str
    ground: str
    ink: str
    faint: str
    grid: str
    before: str
    after: str
    off: str
    on: str

    @property
    def matplotlib_settings(self) -> dict[Any, Any]:
        """The matplotlib settings (rcParams) for charts with these colours."""
        return {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.parse_math": False,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 8.5,
            "axes.edgecolor": self.faint,
            "axes.facecolor": self.ground,
            "axes.labelcolor": self.faint,
            "axes.titlecolor": self.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "figure.facecolor": self.ground,
            "text.color": self.ink,
            "xtick.color": self.faint,
            "ytick.color": self.faint,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "lines.solid_capstyle": "round",
        }


LIGHT = Theme("light", "#fdfcf9", "#1d2024", "#6a6f76", "#e4e2db", "#8b8f96", "#1f5fa6", "#bf6f14", "#2a8561")
DARK = Theme("dark", "#16181b", "#e6e4de", "#9a9fa6", "#2d3136", "#9298a0", "#6caaf2", "#e2a14e", "#62c79c")
