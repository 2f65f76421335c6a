"""A figure of a plan: its value, and the arithmetic or the source that it comes from."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """One figure. `arithmetic`: of a figure worked out, with its numbers; `source`: of one that went in."""

    name: str
    value: float | str
    unit: str = ""
    arithmetic: str = ""
    source: str = ""


def number(value: float, digits: int = 4) -> str:
    """A number for people: so many digits, thousands with commas; small and huge ones by a power of ten."""
    if value != value or value in (float("inf"), float("-inf")):
        return {float("inf"): "∞", float("-inf"): "−∞"}.get(value, "?")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if not 1e-4 <= abs(value) < 1e12:
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value))))
    text = f"{value:,.{max(0, digits - whole if abs(value) >= 1 else _leading_zeros(value) + digits)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _leading_zeros(value: float) -> int:
    """Zeros behind the point of a number below 1."""
    text = f"{abs(value):.12f}".partition(".")[2]
    return len(text) - len(text.lstrip("0"))
