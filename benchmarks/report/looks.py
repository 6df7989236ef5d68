"""What providers look like: one colour and one mark for each, the same in the whole file."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report.markup import Element, element
from benchmarks.report.standing import OURS
from benchmarks.results import COMPILED, Row

# (light, dark). They stay apart in simulated protanopia, deuteranopia and tritanopia; the orange, after Okabe and Ito,
# is fastfeed's alone.
_COLOURS = {
    "ours": ("#d55e00", "#ff8a3c"),
    "baseline": ("#8b9199", "#8f969f"),
    "compiled": ("#0072b2", "#3d9fe0"),
    "other-0": ("#0da159", "#00c379"),
    "other-1": ("#f41cd4", "#ff9cd4"),
    "other-2": ("#869aff", "#7de5ff"),
    "other-3": ("#4924b3", "#f0e442"),
    "other-4": ("#3c4248", "#ebeceb"),
}
_OTHERS = sum(name.startswith("other") for name in _COLOURS)

# Around (0, 0), 10 across.
_CIRCLE = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"
_SQUARE = "M-4.2-4.2H4.2V4.2H-4.2z"
_TRIANGLE = "M0-5.5L5.2 4.2H-5.2z"
_OTHER_MARKS = (  # their number shares no factor with that of the colours, so many pairs differ
    "M0-6L6 0L0 6L-6 0z",  # a diamond
    "M-1.8-5.4H1.8V-1.8H5.4V1.8H1.8V5.4H-1.8V1.8H-5.4V-1.8H-1.8z",  # a plus
    "M0 5.5L-5.2-4.2H5.2z",  # a triangle on its head
    "M-4.6-4.6H4.6L-4.6 4.6H4.6z",  # an hourglass
)


class Look(NamedTuple):
    """The class that sets an element's colour, and the path of a mark."""

    colour: str
    path: str

    def mark(self) -> Element:
        """Return the mark, for a place of its own: around (0, 0)."""
        return element("path", d=self.path, class_=f"mark {self.colour}")

    def key(self, text: str) -> Element:
        """Return an entry of a legend."""
        sample = element("svg", self.mark(), width=14, height=14, viewBox="-7 -7 14 14", aria_hidden="true")
        return element("span", sample, " ", text, class_="key")


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Return how each provider looks, in the order of the rows.

    Baselines are grey, but for one that elsewhere stands beside another baseline.
    """
    beside = {row["provider"] for row in rows if row["provider"] != row["baseline"]}
    baselines = {row["baseline"] for row in rows} - beside
    found: dict[str, Look] = {}
    others = 0
    for provider in dict.fromkeys(row["provider"] for row in rows):
        if provider == OURS:
            found[provider] = Look("ours", _CIRCLE)
        elif provider == COMPILED:
            found[provider] = Look("compiled", _TRIANGLE)
        elif provider in baselines:
            found[provider] = Look("baseline", _SQUARE)
        else:
            found[provider] = Look(f"other-{others % _OTHERS}", _OTHER_MARKS[others % len(_OTHER_MARKS)])
            others += 1
    return found


def colours(dark: bool) -> str:
    """Return the style sheet's variables for the colours."""
    return "".join(f"--{name}:{pair[dark]};" for name, pair in _COLOURS.items())


def colour_classes() -> str:
    """Return the style sheet's classes, which set `color` to the variables."""
    return "\n".join(f".{name}{{color:var(--{name})}}" for name in _COLOURS)
