"""The optimizers of torch.optim and timm.optim that ours are held against, on the same gradients."""

import importlib

import pytest
import torch

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, Lion
from tests.torchvision_ops import torchvision_or_skip

OPTIMIZERS = [SGD, Adam, AdamW, LAMB, LARS, Lion]

_ADAM = ("betas", "eps", "weight_decay", "amsgrad", "maximize")
_SGD = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
_PEERS = {
    SGD: ("torch", "SGD", _SGD),
    Adam: ("torch", "Adam", _ADAM),
    AdamW: ("torch", "AdamW", _ADAM),
    LAMB: ("timm", "Lamb", ("betas", "eps", "weight_decay", "always_adapt")),
    LARS: ("timm", "Lars", (*_SGD[:-1], "eps", "always_adapt")),
    Lion: ("timm", "Lion", ("betas", "weight_decay", "maximize")),
}


class Peers:
    """An optimizer of torch.optim or timm.optim for each parameter of ours, with the options of its group.

    One for each, since timm's LAMB counts the steps of a group, not of a parameter. Its LAMB and LARS cannot maximize:
    they are given the gradients negated.

    Args:
        ours: an optimizer that has not stepped yet.
        dtype: to compute in.
        rounded: after each step, round parameters and states to the dtypes in which ours are stored.
    """

    def __init__(self, ours, dtype=torch.float64, *, rounded=False):
        self.ours, self.rounded = ours, rounded
        self.rows = [(p, group) for group in ours.param_groups for p in group["params"]]
        self.params = [torch.nn.Parameter(p.detach().to(dtype, copy=True)) for p, _ in self.rows]
        self.optimizers = [
            self._peer(type(ours), q, group) for q, (_, group) in zip(self.params, self.rows, strict=True)
        ]

    def _peer(self, cls, q, group):
        package, name, options = _PEERS[cls]
        options = {option: group[option] for option in options}
        if package == "timm":
            torchvision_or_skip("torchvision")  # which timm imports
            pytest.importorskip("timm", reason="needs the package timm, which is not installed")
        if cls is LAMB:
            options["max_grad_norm"] = None
        if cls is LARS:
            options["trust_coeff"] = group["trust_coefficient"]
        return getattr(importlib.import_module(f"{package}.optim"), name)([q], lr=0.0, foreach=False, **options)

    @torch.no_grad()
    def step(self, factor=1.0):
        """Step by the gradients of our parameters, times `factor`."""
        for q, optimizer, (p, group) in zip(self.params, self.optimizers, self.rows, strict=True):
            if p.grad is None:
                continue
            sign = -1 if group["maximize"] and type(self.ours) in (LAMB, LARS) else 1
            q.grad = p.grad.to(q.dtype) * (sign * factor)
            optimizer.param_groups[0]["lr"] = float(group["lr"])
            optimizer.step()
            if self.rounded:
                own = self.ours.state[p]
                places = [(q, own.get("master", p)), *((optimizer.state[q][n], own[n]) for n in self.names(own))]
                for exact, stored in places:
                    exact.copy_(exact.to(stored.dtype))

    def names(self, state):
        """The states that both have, but for the step."""
        return [name for name in self.ours.state_names if name in state]

    def pairs(self):
        """(label, ours, theirs) of parameters, masters and states; of parameters that have been stepped."""
        for i, (q, optimizer, (p, _)) in enumerate(zip(self.params, self.optimizers, self.rows, strict=True)):
            own = self.ours.state.get(p, {})
            label = f"parameter {i}, {tuple(p.shape)}, {p.dtype}"
            yield label, p.detach(), q.detach()
            if "master" in own:
                yield f"{label}: master", own["master"], q.detach()
            for name in self.names(own):
                yield f"{label}: {name}", own[name], optimizer.state[q][name]
