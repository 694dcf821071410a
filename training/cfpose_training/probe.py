"""A look at a module in the midst of its training that leaves no trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back what a forward and backward pass inside changes, also when it fails.

    That is torch's random state, the buffers (batch-norm statistics), the gradients, and each
    part's training mode. Gradients inside begin empty. The weights are not copied: do not step.
    """
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    devices = {p.device for p, _ in gradients if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for part, mode in modes.items():
                part.training = mode
