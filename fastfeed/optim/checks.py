"""Checks of hyperparameters, with torch.optim's messages."""

from typing import Any

from torch import Tensor

_NAMES = {
    "lr": "learning rate",
    "eps": "epsilon value",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "trust_coefficient": "trust_coefficient value",
}


def as_float(value: float | Tensor) -> float:
    """The value of a hyperparameter, which may be a tensor; one on a GPU is waited for."""
    return float(value)


def check_not_negative(group: dict[str, Any], *names: str) -> None:
    """Raise ValueError where one is negative or NaN; tensors on a GPU are not looked at, which would wait for it."""
    for name in names:
        value = group[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element")
            if value.device.type != "cpu":
                continue
        if not value >= 0.0:
            raise ValueError(f"Invalid {_NAMES[name]}: {value}")


def check_betas(group: dict[str, Any]) -> None:
    """Raise ValueError where a decay rate is not in [0, 1)."""
    for index, beta in enumerate(group["betas"]):
        if isinstance(beta, Tensor):
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{index}] must be 1-element")
            if beta.device.type != "cpu":  # each step would wait for it
                raise ValueError(f"betas[{index}] as a Tensor on {beta.device} is not supported: pass a float")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
