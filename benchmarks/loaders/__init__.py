"""Loaders to compare, one per file, each a function `loader(recipe)` that returns the batches of any number of epochs.

All of them read the same files with as many workers or threads, and do the same to an image. Each is put together as
its own documentation does it, and does its work in an epoch's own time: none makes batches ahead of the next epoch
while another loader is timed, and none copies a batch to the host that it has on a GPU.
"""
