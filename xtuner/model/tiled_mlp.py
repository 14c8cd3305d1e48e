"""The MLP of a decoder layer, computed a tile of tokens at a time and recomputed in the backward pass.

An MLP works on each token alone, so tiles give the same numbers, while its wide activations exist for one tile only
(https://arxiv.org/abs/2506.13996). Recomputing it costs the two widest products of a layer; the last one is not
needed again.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xtuner.errors import UserError

TILE_NUMBERS = 2**26
"""Numbers of the widest activation in a tile, 128 MiB in bf16: enough to fill a large card with one product."""

NAMES = ("mlp", "feed_forward")


class TiledMLP(nn.Module):
    """Takes the place of `mlp` under the names of its weights: both have the same children."""

    def __init__(self, mlp: nn.Module, *, compiled: bool) -> None:
        super().__init__()
        self._modules = mlp._modules
        widest = max(getattr(child, "out_features", 0) for child in mlp.children())
        self.tile_tokens = max(1, TILE_NUMBERS // widest)
        self.__dict__["mlp"] = mlp  # not a child, which would rename the weights
        self.__dict__["run"] = torch.compile(self.recomputed) if compiled else self.recomputed

    def recomputed(self, tile: Tensor) -> Tensor:
        """(B, t, D) -> (B, t, D), keeping `tile` alone."""
        mlp: Callable[[Tensor], Tensor] = self.__dict__["mlp"]
        output: Tensor = checkpoint(mlp, tile, use_reentrant=False)
        return output

    @torch.compiler.disable  # the loop stays outside the layer's code, which then serves any number of tiles
    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        run: Callable[[Tensor], Tensor] = self.__dict__["run"]
        if not torch.is_grad_enabled() or hidden.dim() != 3:
            whole: Tensor = self.__dict__["mlp"](hidden)
            return whole
        tiles = [run(tile) for tile in hidden.split(self.tile_tokens, dim=1)]
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)


def tile_mlp(layer: nn.Module, *, compiled: bool) -> None:
    """Put a `TiledMLP` into a decoder layer.

    Raises:
        UserError: the layer has no MLP of linear layers alone (experts, for one, see the whole sequence).
    """
    for name in NAMES:
        mlp: Any = getattr(layer, name, None)
        if isinstance(mlp, nn.Module) and _is_plain(mlp):
            setattr(layer, name, TiledMLP(mlp, compiled=compiled))
            return
    raise UserError(
        f"The layers of this model ({type(layer).__name__}) have no plain MLP that could be recomputed alone.",
        "Set model.recompute=layers, or leave it out.",
    )


def _is_plain(mlp: nn.Module) -> bool:
    """Whether `mlp` is linear layers (adapted or not, in any format) and functions without weights, called on its
    input alone (BLOOM's is given what it is added to, too)."""
    own = next(mlp.parameters(recurse=False), None)
    linear = [hasattr(child, "in_features") for child in mlp.children() if any(True for _ in child.parameters())]
    asked = [each for each in inspect.signature(mlp.forward).parameters.values() if each.default is each.empty]
    return own is None and len(linear) >= 2 and all(linear) and len(asked) == 1
