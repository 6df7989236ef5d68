"""Run a script as `python SCRIPT ARGUMENTS` does, with what tests need around it: see `main`."""

import os
import runpy
import shutil
import sys

from benchmarks.torchvision_ops import import_torchvision


def main():
    """Run the script that the arguments begin with.

    Variables of the environment change what happens around it:

    - EXAMPLES_DIE_AT, a number: the process is gone, as if killed, before it renames a file for the n-th time.
    - EXAMPLES_KEEP_AT, a number: what it renames for the n-th time stays there as "kept.pt" too.
    - EXAMPLES_READS, a file: gets a line with the folder and the index of every sample that is read, in their order.
    """
    import_torchvision()  # the scripts import it plainly, which fails where its compiled part does not load
    watch_renaming(int(os.environ.get("EXAMPLES_DIE_AT", 0)), int(os.environ.get("EXAMPLES_KEEP_AT", 0)))
    if path := os.environ.get("EXAMPLES_READS"):
        record_reads(path)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


def watch_renaming(die_at, keep_at):
    replace, count = os.replace, 0

    def watched(source, target):
        nonlocal count
        count += 1
        if count == die_at:
            os._exit(9)
        replace(source, target)
        if count == keep_at:
            shutil.copy(target, target.with_name("kept.pt"))

    os.replace = watched


def record_reads(path):
    from fastfeed import FolderSource

    read = FolderSource.read

    def recorded(self, indices, pool):
        with open(path, "a") as file:
            file.writelines(f"{self.root.name} {index}\n" for index in indices)
        return read(self, indices, pool)

    FolderSource.read = recorded


if __name__ == "__main__":
    main()
