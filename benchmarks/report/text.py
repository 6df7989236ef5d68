"""Numbers as people read them: three digits or so, and a unit."""

from benchmarks.timing import Band

TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
NONE = DASH  # stands for what was not measured


def number(value: float, unit: str = "") -> str:
    """Return `value` with three significant digits, and all digits before the point, such as "1,234 GB/s"."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    text = f"{value:,.{max(0, 2 - exponent)}f}" if exponent >= -3 or value == 0 else f"{value:.1e}"
    return f"{text} {unit}" if unit else text


def duration(us: float) -> str:
    """Return a time given in µs."""
    if us < 999.5:
        return number(us, "µs")
    return number(us / 1e3, "ms") if us < 999.5e3 else number(us / 1e6, "s")


def size(count: float, round_value: bool = False) -> str:
    """Return a number of bytes, in powers of 1000; "1.50 MB", or "1.5 MB" if it is a round value."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = next((power for power in range(len(units) - 1) if count < 999.5 * 1000**power), len(units) - 1)
    value = count / 1000**power
    return f"{value:g} {units[power]}" if round_value or power == 0 else number(value, units[power])


def speedup(value: float) -> str:
    """Return how many times faster, such as "2.68×"; what is not 1 does not look like it."""
    text = f"{value:.2f}" if 0.1 <= value < 9.995 else number(value)
    return f"{value:.3f}{TIMES}" if text == "1.00" and value != 1 else f"{text}{TIMES}"


def interval(band: Band) -> str:
    """Return the 20th and the 80th percentile of a speedup, such as "2.55–2.88"."""
    return f"{speedup(band.p20)}{DASH}{speedup(band.p80)}".replace(TIMES, "")


def percent(value: float) -> str:
    """Return a percentage, with a decimal where it is below ten."""
    if value < 0.095:
        return "<0.1%" if value > 0 else "0%"
    return f"{value:.0f}%" if value >= 9.95 else f"{value:.1f}%"


def shortened(text: str, limit: int) -> str:
    """Return `text`, or its beginning and an ellipsis, `limit` characters together."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
