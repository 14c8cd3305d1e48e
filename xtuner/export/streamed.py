"""A forward pass of a model that never is in memory: every module's weights come from the disk for its turn only."""

import math
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from xtuner.checkpoint.shards import ShardReader
from xtuner.export.fold import Fold, embedding_name
from xtuner.export.stored import StoredWeights
from xtuner.model.checks import explain, read_json
from xtuner.model.register import build_config, needs_remote_code, register_families

Parameters = dict[str, nn.Parameter]


class Unnamed(Exception):
    """The model in memory has a weight that no tensor of the files becomes, not even by the library's conversions."""


class StreamedModel:
    """Computes logits in fp32, with an adapter beside the base weights if there is one.

    Memory: the largest module in fp32, and the activations.

    Raises:
        UserError: the folder holds no model that transformers can build.
    """

    def __init__(
        self,
        folder: Path,
        fold: Fold | None = None,
        device: str = "cpu",
        *,
        rounded_again: Collection[str] = (),
        changes: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """`changes`: what config.json says differently. `rounded_again`: tensors of the files that get random errors of
        the size that rounding to their dtype made, relative errors of eps / sqrt(12): so one sees what this model
        makes of them."""
        register_families()
        self._weights = ShardReader(folder)
        self._fold = fold
        self._device = torch.device(device)
        self._rounded_again = rounded_again
        self._noise = torch.Generator().manual_seed(0)
        self.dtypes: set[torch.dtype] = set()
        """In which the weights that were used are stored."""
        with explain(str(folder), "model"), init_empty_weights(include_buffers=False):
            trust = trust_remote_code and needs_remote_code(read_json(str(folder), "config.json").get("model_type"))
            self.config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
            if changes:
                self.config = build_config({**read_json(str(folder), "config.json"), **changes})
            self._model = AutoModelForCausalLM.from_config(
                self.config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=trust
            )
        self._model.eval()
        self._parameters = {name for name, _ in self._model.named_parameters(remove_duplicate=False)}
        self._stored = StoredWeights(self._model, self._weights)
        for name, module in self._model.named_modules():
            for key, buffer in dict(module.named_buffers(recurse=False)).items():
                stored = self._stored.get(f"{name}.{key}", self._read) if f"{name}.{key}" in self._stored else buffer
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
        if name in self._stored:
            weight = self._stored.get(name, self._read)
        else:
            head = self._model.get_output_embeddings()
            if head is None or self._model.get_submodule(name.rpartition(".")[0]) is not head:
                raise Unnamed(name)
            weight = self._read(embedding_name(self._weights))  # a tied head
        weight = weight.to(self._device, torch.float32)
        return weight if self._fold is None else self._fold.start(name, weight)

    def _read(self, stored: str) -> Tensor:
        """Read a tensor of the files; with the adapter in it if the files alone know its name (one of the experts)."""
        weight = self._weights.get(stored)
        self.dtypes.add(weight.dtype)
        if stored in self._rounded_again:
            errors = torch.randn(weight.shape, generator=self._noise) * (torch.finfo(weight.dtype).eps / math.sqrt(12))
            return weight.float() * (1 + errors)
        if self._fold is None or stored not in self._fold.names() or stored in self._parameters:
            return weight
        return self._fold.apply(stored, weight.float())


def _bias(module: nn.Module) -> Tensor | None:
    return module.get_parameter("bias") if "bias" in dict(module.named_parameters(recurse=False)) else None
