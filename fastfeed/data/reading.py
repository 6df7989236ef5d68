"""Stand-in."""

from dataclasses import dataclass
from typing import Any

import torch

from fastfeed.data.mix import Mix
from fastfeed.data.sources import Source
from fastfeed.data.transforms import Transform


class Unreadable(Exception):
    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class Reading:
    source: Source
    transform: Transform | None
    dtype: torch.dtype | None


def read_dataset(dataset: Any) -> Reading:
    raise Unreadable([f"{type(dataset).__name__} is no dataset of files"])


def read_transform(transform: Any) -> tuple[Transform, torch.dtype]:
    raise Unreadable([f"{type(transform).__name__} cannot be read"])


def read_collate(collate_fn: Any) -> Mix | None:
    raise Unreadable([f"collate_fn {collate_fn!r} cannot be read"])
