"""Taking evidence leaves no trace: mode, flags and random state are what they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode with every parameter frozen; afterwards all is as before.

    What is put back, whatever ends the block: each module's train or eval mode, each parameter's
    `requires_grad`, and torch's random state on the CPU and on the model's devices. Gradients that wait in
    `.grad` are not touched.

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in flags if parameter.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind):
        try:
            for module, _ in modes:
                module.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
