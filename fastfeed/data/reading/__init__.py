"""Reading what people already have: torchvision's datasets, transforms and collate functions, to be done by DALI.

Everything is recognised by class and attributes, without importing torchvision. What cannot be done with the same
results is `Unreadable`, with every reason.
"""

from fastfeed.data.reading.collate import read_collate
from fastfeed.data.reading.datasets import Reading, Snapshot, read_dataset, snapshot
from fastfeed.data.reading.reasons import Unreadable
from fastfeed.data.reading.tail import LeftBatch, Scaling, Split, collate_left, split_tail
from fastfeed.data.reading.transforms import read_transform

__all__ = [
    "LeftBatch",
    "Reading",
    "Scaling",
    "Snapshot",
    "Split",
    "Unreadable",
    "collate_left",
    "read_collate",
    "read_dataset",
    "read_transform",
    "snapshot",
    "split_tail",
]
