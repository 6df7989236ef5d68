"""Where encoded samples lie: a folder of class folders, lists of files, tar shards, datasets that say where.

`base` says what a source is, `targets` how targets become batches; `folder`, `list`, `samples`, `encoded` and `tar` are
the sources; `shards` and `tar_index` find the members of tar files.
"""

from fastfeed.data.sources.base import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS, EncodedBatch, Source
from fastfeed.data.sources.encoded import EncodedSource
from fastfeed.data.sources.folder import FolderSource
from fastfeed.data.sources.list import ListSource
from fastfeed.data.sources.samples import SampleSource
from fastfeed.data.sources.tar import TarSource

__all__ = [
    "EncodedBatch",
    "EncodedSource",
    "FolderSource",
    "IMAGE_EXTENSIONS",
    "ListSource",
    "SampleSource",
    "Source",
    "TarSource",
    "UNREAD_EXTENSIONS",
]
