"""The command line: ``python -m benchmarks run | list | report | compare | equality | accuracy``, in a checkout."""

import argparse
import math
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks import accuracy
from benchmarks.case import Case, Options, label, select
from benchmarks.cases import all_cases
from benchmarks.compare import compare
from benchmarks.environment import cores, environment
from benchmarks.equality import table
from benchmarks.harness import Pass, measure_pass
from benchmarks.machine import ceilings, keep_freed_memory
from benchmarks.peers import Absent
from benchmarks.report import summary_for, write_report
from benchmarks.report.summary import update_readme
from benchmarks.results import FILE, device_folder, read_rows, write_rows
from benchmarks.rows import make_rows
from benchmarks.table import header, heading, line
from fastfeed import kernels

_ON_DEVICE = Path("<device>")  # stands for the folder of this device


def main(arguments: Sequence[str] | None = None, cases: Sequence[type[Case]] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line by default.
        cases: all by default.

    Returns:
        0; or 1 if a row is wrong or failed, or if one of ours became slower.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    return args.handle(parser, args, all_cases() if cases is None else cases)


def _list(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> int:
    for case, parameters in _selected(parser, args, cases):
        print(f"{label(case, parameters)}: {', '.join(case.providers)}")
    return 0


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> int:
    if kernels.interpreted():
        parser.error("TRITON_INTERPRET is set, and the speed of Triton's interpreter is not worth knowing: unset it")
    if os.environ.get("TORCH_COMPILE_DISABLE", "0") != "0":
        parser.error("TORCH_COMPILE_DISABLE is set, and what is named torch.compile would be eager: unset it")
    if args.filter and args.output == _ON_DEVICE:
        parser.error("-o without DIR keeps the results of all rows for this device: name a DIR for those of --filter")
    selected = _selected(parser, args, cases)
    options = _options(args)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    machine = environment(options.device)
    folder = device_folder(machine) if args.output == _ON_DEVICE else args.output
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # whether it can be written, before an hour's work
        except OSError as error:
            parser.error(f"-o {folder}: {error.strerror}")
    start = time.monotonic()
    limits = ceilings(options.device)
    constant = machine | limits._asdict()
    print(header(constant), flush=True)
    passes: list[list[Pass]] = [[] for _ in selected]
    rows: list[list[dict[str, Any]]] = [[] for _ in selected]
    for number in range(1, options.passes + 1):
        for i, (case, parameters) in enumerate(selected):
            _say(f"pass {number} of {options.passes}: {label(case, parameters)}")
            passes[i].append(measure_pass(case, parameters, options, passes[i][0] if passes[i] else None))
            rows[i] = [row | constant for row in make_rows(case, parameters, options, limits, passes[i])]
            if folder is not None:
                write_rows(folder, list(chain(*rows)))
            if number == options.passes:
                _say("")
                print(heading(rows[i][0]), *map(line, rows[i]), sep="\n", flush=True)
    print(f"\ntook     {time.monotonic() - start:.0f} s")
    if folder is not None:
        print(f"results  {folder / FILE}")
    failures = sum(row["status"] in ("wrong", "failed") for row in chain(*rows))
    if failures:
        print(f"\n{failures} rows are wrong or failed", file=sys.stderr)
    return 1 if failures else 0


def _say(progress: str) -> None:
    """Show what is going on in a line that is written over, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r{progress:79.79}\r", end="", file=sys.stderr, flush=True)


def _report(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> int:
    try:
        print(f"report   {write_report(args.folder)}")
        if args.readme is not None:
            changed = update_readme(args.readme, args.folder.resolve().name, summary_for(args.readme, args.folder))
            print(f"summary  {args.readme}, {'updated' if changed else 'as it was'}")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    return 0


def _compare(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> int:
    try:
        before, after = read_rows(args.before), read_rows(args.after)
    except ValueError as error:
        parser.error(str(error))
    table, worse = compare(before, after)
    print(table)
    return 1 if worse else 0


def _equality(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> int:
    _check_device(parser, args)
    try:
        found = table(args.data, device=torch.device(args.device))
        if args.output is None:
            print(found, end="")
        else:
            args.output.write_text(found)
            print(f"table    {args.output}")
    except Absent as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")
    return 0


def _accuracy(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> int:
    _check_device(parser, args)
    settings = accuracy.Settings(
        args.data, args.epochs, args.width, args.batch_size, args.lr, torch.device(args.device), args.threads
    )
    options = ("epochs", "width", "batch_size", "lr", "seeds", "device", "threads")
    flags = [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in options]
    command = " ".join(["python -m benchmarks accuracy", shlex.quote(str(args.data)), *flags])
    machine = environment(settings.device)
    seeds = range(args.seeds)
    try:
        settings.check()
        if args.output is not None:
            args.output.touch()  # whether it can be written, before an hour's work
        outcomes = accuracy.compare(settings, seeds, lambda line: print(line, flush=True))
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")
    found = accuracy.table(settings, seeds, outcomes, machine, command)
    print(f"\n{found}", end="")
    if args.output is not None:
        args.output.write_text(found)
        print(f"\ntable    {args.output}")
    return 0 if accuracy.comparison(outcomes).same else 1


def _options(args: argparse.Namespace) -> Options:
    return Options(torch.device(args.device), args.quick, args.data, args.threads)


def _selected(parser: argparse.ArgumentParser, args: argparse.Namespace, cases: Sequence[type[Case]]) -> list:
    _check_device(parser, args)
    selected = select(cases, _options(args), args.filter)
    if not selected:
        parser.error(f"--filter {args.filter}: no such row; `python -m benchmarks list` shows them all")
    return selected


def _check_device(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no NVIDIA GPU (torch.cuda.is_available() is False)")


def _parser() -> argparse.ArgumentParser:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to run; the current GPU by default, if there is one",
    )
    where.add_argument(
        "--threads",
        type=_positive,
        default=cores(),
        metavar="N",
        help="threads for an operation on the CPU, and workers of the loaders; one per core by default",
    )
    rows = argparse.ArgumentParser(add_help=False, parents=[where])
    rows.add_argument("--quick", action="store_true", help="fewer rows, and less time for each")
    rows.add_argument(
        "--filter", default="", metavar="SUBSTRING", help="only rows whose name/shape/dtype contains this"
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
    run.add_argument(
        "-o",
        "--output",
        type=Path,
        nargs="?",
        const=_ON_DEVICE,
        metavar="DIR",
        help=f"write DIR/{FILE}, one object per row; without DIR, where results of this device are kept",
    )
    run.set_defaults(handle=_run)
    list_ = commands.add_parser("list", parents=[rows], help="print the rows and their providers, and time nothing")
    list_.set_defaults(handle=_list)
    report = commands.add_parser("report", help="write DIR/report.html, and DIR/summary.md for a README")
    report.add_argument("folder", type=Path, metavar="DIR", help=f"a folder with {FILE}")
    report.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="put the summary between <!-- benchmarks: NAME --> and <!-- end of benchmarks: NAME -->, NAME being DIR's",
    )
    report.set_defaults(handle=_report)
    compare_ = commands.add_parser(
        "compare", help="say what is faster, slower or the same in DIR2; exit with 1 if a row of fastfeed's is slower"
    )
    compare_.add_argument("before", type=Path, metavar="DIR1", help=f"a folder with {FILE}")
    compare_.add_argument("after", type=Path, metavar="DIR2", help="another one")
    compare_.set_defaults(handle=_compare)
    equality = commands.add_parser(
        "equality",
        help="print how far the loader's pixels are from torchvision's, transform by transform, in Markdown; "
        "with --device cuda, how far those on the GPU are from those on the CPU",
    )
    equality.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="by default, the CPU")
    equality.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table there instead")
    equality.add_argument(
        "--data", type=_folder, metavar="DIR", help="a folder of class folders: take its photographs, not drawn images"
    )
    equality.set_defaults(handle=_equality)
    accuracy_ = commands.add_parser(
        "accuracy",
        parents=[where],
        help="train on CIFAR-10 with our parts and with PyTorch's; exit with 1 if accuracies are not the same",
    )
    accuracy_.add_argument(
        "data",
        type=_folder,
        metavar="DIR",
        help="a folder with train/<class>/<image> and test/<class>/<image>, of 32 x 32 pixels",
    )
    accuracy_.add_argument("--epochs", type=_positive, default=5, metavar="N", help="by default 5; 24 for 94%%")
    accuracy_.add_argument("--width", type=_positive, default=16, metavar="N", help="by default 16; 64 for 94%%")
    accuracy_.add_argument("--batch-size", type=_positive, default=512, metavar="N", help="by default 512")
    accuracy_.add_argument("--lr", type=_rate, default=0.4, help="the highest learning rate, by default 0.4")
    accuracy_.add_argument("--seeds", type=_several, default=3, metavar="N", help="how many, 2 or more; by default 3")
    accuracy_.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table there")
    accuracy_.set_defaults(handle=_accuracy)
    return parser


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: {text}")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return int(text)


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a learning rate above 0")
    return value


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: expected 2 or more, or there is no spread to compare with")
    return int(text)


if __name__ == "__main__":
    # As by Ctrl-C: workers are ended, and folders removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
