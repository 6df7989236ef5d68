"""Rows as text."""

from collections.abc import Sequence
from typing import Any

from benchmarks.results import COMPILED, Row, groups

_COLUMNS = {"provider": 25, "p20": 10, "p50": 10, "p80": 10, "rate": 11}


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


def heading(row: dict[str, Any]) -> str:
    """Return what stands above the rows of one set of inputs."""
    return f"{row['op']}, {row['direction']}, {row['shape']} {row['dtype']}"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    cells = {"provider": f"  {row['provider']}"}
    if row["status"] == "absent":
        return f"{_line(cells)}  absent: {row['reason']}"
    if row["status"] != "ok":
        return f"{_line(cells)}  {row['status'].upper()}, not timed: {row['reason']}"
    cells |= {name: _time(row[f"{name}_us"]) for name in ("p20", "p50", "p80")}
    cells["rate"] = _rate(row)
    last = "{speedup_p50:.2f}x ({speedup_p20:.2f}-{speedup_p80:.2f})".format(**row)
    if row["provider"] == row["baseline"]:
        last = "baseline"
    if row["data_wait"] is not None:
        last += f", {row['data_wait']:.1%} waiting for data"
    return _line(cells, last)


def short(rows: Sequence[Row]) -> str:
    """Return one line per set of inputs: fastfeed's time, and how many times faster it is than the others."""
    titles = ("op", "shape", "dtype", "fastfeed", "baseline", "torch.compile", "best other", "of copy", "")
    lines = [titles]
    for (op, shape, dtype), group in groups(rows).items():
        found = {row["provider"]: row for row in group}
        ours = found.get("fastfeed")
        lost = [f"{row['provider']} {row['status']}" for row in group if row["status"] in ("wrong", "failed")]
        if ours is None or ours["status"] != "ok":
            lines.append((op, shape, dtype, ours["status"] if ours else "none", "", "", "", "", ", ".join(lost)))
            continue
        others = [
            (ours["speedup_p50"] / row["speedup_p50"], row["provider"])
            for row in group
            if row["status"] == "ok" and row["peer"] and row["provider"] not in (row["baseline"], COMPILED)
        ]
        compiled, percent = ours["speedup_compiled"], ours["percent_of_copy"]
        lines.append(
            (
                *(op, shape, dtype, _time(ours["p50_us"]), f"{ours['speedup_p50']:.2f}x"),
                f"{compiled:.2f}x" if compiled is not None else "",
                "{:.2f}x {}".format(*min(others)) if others else "",
                f"{percent:.0f}%" if percent is not None else "",
                ", ".join(lost),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in zip(cells, widths, strict=True)).rstrip() for cells in lines)


def _line(cells: dict[str, str], last: str = "") -> str:
    aligned = [f"{cell:{'<' if name == 'provider' else '>'}{_COLUMNS[name]}}" for name, cell in cells.items()]
    return "  ".join([*aligned, last]).rstrip()


def _time(us: float) -> str:
    return f"{us:.1f} µs" if us < 1000 else f"{us / 1000:.2f} ms"


def _rate(row: dict[str, Any]) -> str:
    if row["img_per_s"] is not None:
        return f"{row['img_per_s']:.0f} img/s"
    if row["gb_per_s"] is not None:
        return f"{row['gb_per_s']:.1f} GB/s"
    return ""
