"""A forward pass of a model that never is in memory: every module's weights come from the disk for its turn only."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from xtuner.checkpoint.shards import ShardReader
from xtuner.export.fold import Fold, embedding_name
from xtuner.model.checks import explain
from xtuner.model.register import register_families

Parameters = dict[str, nn.Parameter]


class Unnamed(Exception):
    """The model in memory has a weight that the files know under another name (fused experts, for example)."""


class StreamedModel:
    """Computes logits in fp32, with an adapter beside the base weights if there is one.

    Memory: the largest module in fp32, and the activations.

    Raises:
        UserError: the folder holds no model that transformers can build.
    """

    def __init__(self, folder: Path, fold: Fold | None = None, device: str = "cpu") -> None:
        register_families()
        self._weights = ShardReader(folder)
        self._fold = fold
        self._device = torch.device(device)
        self.dtypes: set[torch.dtype] = set()
        """In which the weights that were used are stored."""
        with explain(str(folder), "model"), init_empty_weights(include_buffers=False):
            self.config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            self._model = AutoModelForCausalLM.from_config(
                self.config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
        self._model.eval()
        for name, module in self._model.named_modules():
            for key, buffer in dict(module.named_buffers(recurse=False)).items():
                stored = self._weights.get(f"{name}.{key}") if f"{name}.{key}" in self._weights else buffer
                module.register_buffer(key, stored.to(self._device), persistent=False)
            own = dict(module.named_parameters(recurse=False))
            if own:
                module.register_forward_pre_hook(partial(self._fill, name, own))
                module.register_forward_hook(partial(self._free, name, own))

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V), fp32 on the CPU, of rows of ids (B, T) that may be padded on the right.

        Raises:
            Unnamed: see there.
        """
        return self._model(input_ids=ids.to(self._device), use_cache=False).logits.float().cpu()

    def _fill(self, name: str, own: Parameters, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Before a module runs: its weights are read."""
        for key in own:
            module.register_parameter(key, nn.Parameter(self._weight(f"{name}.{key}"), requires_grad=False))

    def _free(self, name: str, own: Parameters, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """After a module ran: the adapter adds its part, and the weights go."""
        if self._fold is not None and name in self._fold.modules():
            output = self._fold.output(name, inputs[0], output, module.get_parameter("weight"), _bias(module))
        for key, empty in own.items():
            module.register_parameter(key, empty)
        return output

    def _weight(self, name: str) -> Tensor:
        """Return the weight that a parameter name stands for, without a low-rank part, in fp32."""
        stored = name
        if name not in self._weights:
            head = self._model.get_output_embeddings()
            if head is None or self._model.get_submodule(name.rpartition(".")[0]) is not head:
                raise Unnamed(name)
            stored = embedding_name(self._weights)  # a tied head
        weight = self._weights.get(stored)
        self.dtypes.add(weight.dtype)
        weight = weight.to(self._device, torch.float32)
        return weight if self._fold is None else self._fold.start(name, weight)


def _bias(module: nn.Module) -> Tensor | None:
    return module.get_parameter("bias") if "bias" in dict(module.named_parameters(recurse=False)) else None
