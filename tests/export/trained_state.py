"""A model that was trained, so to speak, and the checkpoint that its run would have left."""

from pathlib import Path

import torch

from xtuner.checkpoint.state import save_state
from xtuner.config.spec import RunSpec
from xtuner.model.load import load_model
from xtuner.model.trainable import trainable_state


def trained(spec: RunSpec, pth: Path) -> torch.nn.Module:
    """Return the model of `spec` with other weights where they learn; its checkpoint is in `pth`."""
    model = load_model(spec.model, device="cpu", dtype=torch.float32, train=False)
    if spec.model.lora is None:
        model.requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_state(pth, {"state_dict": trainable_state(model), "meta": {"iter": 4}})
    return model
