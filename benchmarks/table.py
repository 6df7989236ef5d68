"""Rows as text."""

from typing import Any

_COLUMNS = {"op": 14, "shape": 13, "dtype": 8, "provider": 14, "p20": 10, "p50": 10, "p80": 10, "rate": 11}


def header(environment: dict[str, Any]) -> str:
    """Return what the numbers below it depend on, and the names of the columns."""
    e = environment
    processor = f"{e['cpu']}, {e['cores']} cores, {e['threads']} threads"
    versions = [f"{name} {e[name]}" for name in ("torch", "cuda", "triton", "dali", "fastfeed") if e[name]]
    titles = _line({name: name for name in _COLUMNS}, "speedup (p20-p80)")
    return "\n".join(
        (
            f"device   {e['device']}: {e['gpu']}, on {processor}"
            if e["gpu"]
            else f"device   {e['device']}: {processor}",
            f"versions {', '.join(versions)}, python {e['python']}",
            f"commit   {e['commit'] or 'unknown'}",
            f"ceilings copy {e['copy_gb_per_s']:.1f} GB/s, {e['matmul_dtype']} matrix product "
            f"{e['matmul_tflop_per_s']:.2f} TFLOP/s",
            "",
            titles,
            "-" * len(titles),
        )
    )


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = {name: row[name] for name in ("op", "shape", "dtype", "provider")}
    if row["status"] == "absent":
        return f"{_line(cells)}  absent: {row['reason']}"
    if row["status"] != "ok":
        return f"{_line(cells)}  {row['status'].upper()}, not timed: {row['reason']}"
    cells |= {name: _time(row[f"{name}_us"]) for name in ("p20", "p50", "p80")}
    cells["rate"] = _rate(row)
    if row["provider"] == row["baseline"]:
        return _line(cells, "baseline")
    return _line(cells, "{speedup_p50:.2f}x ({speedup_p20:.2f}-{speedup_p80:.2f})".format(**row))


def _line(cells: dict[str, str], last: str = "") -> str:
    names = ("op", "shape", "dtype", "provider")
    aligned = [f"{cell:{'<' if name in names else '>'}{_COLUMNS[name]}}" for name, cell in cells.items()]
    return "  ".join([*aligned, last]).rstrip()


def _time(us: float) -> str:
    return f"{us:.1f} µs" if us < 1000 else f"{us / 1000:.2f} ms"


def _rate(row: dict[str, Any]) -> str:
    if row["img_per_s"] is not None:
        return f"{row['img_per_s']:.0f} img/s"
    if row["gb_per_s"] is not None:
        return f"{row['gb_per_s']:.1f} GB/s"
    return ""
