"""The command line: fastfeed info | demo."""

import argparse
import os
import sys
import tempfile
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
    return _demo(options)


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
    return parser


def _demo(options: argparse.Namespace) -> int:
    from fastfeed.demo.run import run

    try:
        run(
            options.data,
            drawn=options.drawn or _cache(),
            steps=options.steps,
            batch_size=options.batch_size,
            size=options.size,
            workers=options.workers,
            device=options.device,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # These name the thing and the way out; a traceback would bury it. Anything else is a bug and shows one.
        print(f"fastfeed demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fastfeed demo: interrupted", file=sys.stderr)
        return 130  # as shells report it
    return 0


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastfeed"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"fastfeed-{os.getuid()}"


if __name__ == "__main__":
    sys.exit(main())
