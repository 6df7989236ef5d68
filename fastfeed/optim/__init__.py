"""Optimizers that step all tensors in one or two kernel launches, and what sets their learning rate."""

from fastfeed.optim.adam import Adam, AdamW
from fastfeed.optim.lamb import LAMB
from fastfeed.optim.lars import LARS
from fastfeed.optim.lion import Lion
from fastfeed.optim.lr_find import LRFindResult, lr_find
from fastfeed.optim.optimizer import MultiTensorOptimizer, StepOptions
from fastfeed.optim.scaler import GradScaler
from fastfeed.optim.schedules import warmup_cosine
from fastfeed.optim.sgd import SGD

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "GradScaler",
    "LRFindResult",
    "Lion",
    "MultiTensorOptimizer",
    "StepOptions",
    "lr_find",
    "warmup_cosine",
]
