"""The command line: fastfeed info | demo | scan | preview."""

import argparse
import csv
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from fastfeed._version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "info":
        from fastfeed.info import collect

        info = collect()
        print(info.text())
        return 0 if info.usable else 1
    # scan says by 1 that images are bad, so what goes wrong with itself is 2, as for argparse.
    run, failure = {"demo": (_demo, 1), "scan": (_scan, 2), "preview": (_preview, 2)}[options.command]
    return _reported(options.command, lambda: run(options), failure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastfeed", description="Keeps an accelerator fed.")
    parser.add_argument("--version", action="version", version=f"fastfeed {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, device, what was built, and what to do about anything missing")
    demo = commands.add_parser(
        "demo",
        help="train a small network on JPEG files through every part of fastfeed",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("data", nargs="?", type=Path, help="a folder of class folders; without it a set is drawn")
    demo.add_argument("--drawn", type=Path, help="where the drawn set is kept; by default in your cache folder")
    demo.add_argument("--steps", type=int, default=600, help="training steps")
    demo.add_argument("--batch-size", type=int, default=64)
    demo.add_argument("--size", type=int, default=64, help="height and width of the network's input, pixels")
    demo.add_argument("--workers", type=int, default=0, help="threads of our loader, processes of PyTorch's; 0: cores")
    demo.add_argument("--device", help="cpu or cuda; by default the GPU if there is one")
    scan = commands.add_parser(
        "scan",
        help="find the files that cannot be used: missing, cut short, undecodable, of another format, too large",
        description="Decodes every image and prints those that cannot be used, with the reason. Exit status: 0 if "
        "there are none, 1 if there are some, 2 if the scan itself fails.",
    )
    scan.add_argument(
        "data", metavar="DATA", help="a folder of images, nested or not; an image; a tar shard, or a folder of them"
    )
    scan.add_argument("-o", "--output", metavar="FILE", default=os.devnull, help="for the bad ones: path, tab, reason")
    scan.add_argument("--workers", type=int, default=0, help="threads; by default one per core")
    scan.add_argument("--max-pixels", type=int, help="larger images are bad; by default what Pillow refuses")
    preview = commands.add_parser(
        "preview",
        help="draw a contact sheet of the batches that a network would get",
        description="Draws a contact sheet of the batches that a network would get. Each row is a batch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    preview.add_argument("data", metavar="DATA", help="a folder of class folders; a tar shard, or a folder of them")
    preview.add_argument("-o", "--output", type=Path, default=Path("sheet.png"), help="the image to write")
    preview.add_argument("--count", type=int, default=32, help="images")
    preview.add_argument("--columns", type=int, default=8, help="images side by side")
    preview.add_argument("--size", type=int, default=224, help="height and width of an image, pixels")
    preview.add_argument("--auto-augment", choices=("trivial", "rand", "auto"), help="with its defaults")
    preview.add_argument("--erase", type=float, metavar="P", default=0.0, help="probability of random erasing")
    preview.add_argument("--mixup", type=float, metavar="ALPHA", default=0.0, help="of mixup's Beta distribution")
    preview.add_argument("--cutmix", type=float, metavar="ALPHA", default=0.0, help="of cutmix's Beta distribution")
    preview.add_argument("--eval", action="store_true", help="resize and centre crop, as for evaluation")
    preview.add_argument("--seed", type=int, default=0, help="of the order and of every random choice")
    return parser


def _reported(command: str, run: Callable[[], int], failure: int) -> int:
    """Return a command's exit status, and print what goes wrong, and each warning, in one line."""
    try:
        with warnings.catch_warnings():
            # Without the line of code that Python shows with it, which is none of the user's.
            warnings.showwarning = lambda message, *_, **__: print(f"fastfeed {command}: {message}", file=sys.stderr)
            return run()
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError, Warning) as error:
        # These name the thing and the way out; a traceback would bury it. Anything else is a bug and shows one.
        print(f"fastfeed {command}: {error}", file=sys.stderr)
        return failure
    except KeyboardInterrupt:
        print(f"fastfeed {command}: interrupted", file=sys.stderr)
        return 130  # as shells report it


def _demo(options: argparse.Namespace) -> int:
    from fastfeed.demo.run import run

    run(
        options.data,
        drawn=options.drawn or _cache(),
        steps=options.steps,
        batch_size=options.batch_size,
        size=options.size,
        workers=options.workers,
        device=options.device,
    )
    return 0


def _scan(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from fastfeed.data.loader import MAX_PIXELS
    from fastfeed.scan import find_images, scan

    source = find_images(options.data)
    max_pixels = MAX_PIXELS if options.max_pixels is None else options.max_pixels
    bad = 0
    # File names may be any bytes. disable=None: no bar where no terminal shows it.
    with (
        open(options.output, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        tqdm(total=len(source), unit=" images", disable=None) as bar,
    ):
        table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        for name, problem in scan(source, workers=options.workers, max_pixels=max_pixels):
            bar.update()
            if problem is not None:
                bad += 1
                table.writerow([name, problem])
                tqdm.write(_printable(f"{name}: {problem}"))
    print(f"{len(source):,} images, {bad:,} bad")
    return 1 if bad else 0


def _preview(options: argparse.Namespace) -> int:
    from fastfeed import DataLoader, Mix, transforms
    from fastfeed.preview import contact_sheet, find_labelled_images

    mix = Mix(options.mixup, options.cutmix) if options.mixup or options.cutmix else None
    if options.eval:
        if options.auto_augment or options.erase or mix:
            raise ValueError("--eval goes with no --auto-augment, --erase, --mixup or --cutmix: these are of training")
        transform = transforms.eval(options.size)
    else:
        transform = transforms.train(options.size, augment=options.auto_augment or (), erase=options.erase)
    loader = DataLoader(
        find_labelled_images(options.data),
        batch_size=max(options.columns, 2),  # of which images are mixed
        shuffle=True,
        transform=transform,
        device="cpu",
        mix=mix,
        seed=options.seed,
        on_error="drop",
    )
    sheet = contact_sheet(loader, options.count, options.columns)
    sheet.save(options.output)
    print(f"wrote {options.output}: {sheet.width} x {sheet.height} pixels")
    return 0


def _printable(text: str) -> str:
    """Return a text that any terminal takes: file names may be any bytes."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfeed"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"fastfeed-{os.getuid()}"


if __name__ == "__main__":
    sys.exit(main())
