"""The command line: ``python -m benchmarks run | list``, from the root of a checkout."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.cases import all_cases
from benchmarks.environment import environment
from benchmarks.harness import Case, Options, label, measure_case, select
from benchmarks.table import header, line
from fastfeed import kernels


def main(arguments: Sequence[str] | None = None, cases: Sequence[type[Case]] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line by default.
        cases: all by default.

    Returns:
        0, or 1 if a row is wrong or failed.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no NVIDIA GPU (torch.cuda.is_available() is False)")
    options = Options(torch.device(args.device), args.quick, args.data)
    selected = select(all_cases() if cases is None else cases, options, args.filter)
    if not selected:
        parser.error(f"--filter {args.filter}: no such row; `python -m benchmarks list` shows them all")

    if args.command == "list":
        for case, parameters in selected:
            print(f"{label(case, parameters)}: {', '.join(case.providers)}")
        return 0

    if kernels.interpreted():
        parser.error("TRITON_INTERPRET is set, and the speed of Triton's interpreter is not worth knowing: unset it")
    machine = environment(options.device)
    if args.output is not None:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "results.jsonl").touch()
        except OSError as error:
            parser.error(f"-o {args.output}: {error.strerror}")
    failures = 0
    with open(args.output / "results.jsonl", "w") if args.output is not None else nullcontext() as file:
        print(header(machine), flush=True)
        for case, parameters in selected:
            for row in measure_case(case, parameters, options):
                print(line(row), flush=True)
                failures += row["status"] != "ok"
                if file is not None:
                    print(json.dumps(row | machine), file=file, flush=True)
    if failures:
        print(f"\n{failures} rows are wrong or failed", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    rows = argparse.ArgumentParser(add_help=False)
    rows.add_argument("--quick", action="store_true", help="fewer rows, and less time for each")
    rows.add_argument(
        "--filter", default="", metavar="SUBSTRING", help="only rows whose name/shape/dtype contains this"
    )
    rows.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to run; the current GPU by default, if there is one",
    )
    rows.add_argument(
        "--data",
        type=_folder,
        metavar="DIR",
        help="a folder of class folders: feed its photographs to the loaders, at 224 x 224, instead of drawn images",
    )

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure fastfeed against PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", parents=[rows], help="check and time every row, and print a table")
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="write DIR/results.jsonl, one object per row")
    commands.add_parser("list", parents=[rows], help="print the rows and their providers, and time nothing")
    return parser


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {text}")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
