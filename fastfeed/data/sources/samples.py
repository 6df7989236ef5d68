"""Files whose targets are made when they are read."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from fastfeed.data.sources.base import EncodedBatch, OneAtATime, Source
from fastfeed.data.sources.list import checked_paths
from fastfeed.data.sources.targets import collate

TargetTransform = Callable[[Any], Any]


class SampleSource(Source):
    """Files with targets that a function is called on whenever they are read, as torchvision's `target_transform`.

    A batch's targets are collated by ``torch.utils.data.default_collate``. The functions are called in one thread, for
    one sample at a time; what they raise is raised by `read`.

    Args:
        paths: the image files.
        targets: one per path.
        transforms: a function for each target, or None, which leaves it as it is.

    Raises:
        TypeError: for a path of another type.
        ValueError: for lists that are empty or of different lengths, or an empty path.
    """

    def __init__(
        self,
        paths: Sequence[Any],
        targets: Sequence[Any],
        transforms: Sequence[TargetTransform | None],
    ) -> None:
        if not len(paths) == len(targets) == len(transforms):
            raise ValueError(
                f"there are {len(paths)} paths, {len(targets)} targets and {len(transforms)} transforms; expected one "
                "of each for each sample"
            )
        self.paths = checked_paths(paths)
        self._targets = list(targets)
        self._transforms = list(transforms)
        self._calling = OneAtATime()

    def __len__(self) -> int:
        """Paths in the list."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return a sample's path."""
        return self.paths[index]

    def read(self, indices: npt.ArrayLike, pool: Any) -> EncodedBatch:
        """Read files: see `Source.read`."""
        indices = self._checked(indices)
        with self._calling:
            targets = [self._target(i) for i in indices]
        return self._read_files([self.paths[i] for i in indices], collate(targets), pool)

    def subset(self, indices: npt.ArrayLike) -> "SampleSource":
        """Return a source of the samples at `indices`, in that order."""
        indices = self._checked(indices)
        chosen = object.__new__(SampleSource)
        for name in ("paths", "_targets", "_transforms"):
            values = getattr(self, name)
            setattr(chosen, name, [values[i] for i in indices])
        chosen._calling = self._calling
        return chosen

    def _target(self, index: int) -> Any:
        transform, target = self._transforms[index], self._targets[index]
        return target if transform is None else transform(target)
