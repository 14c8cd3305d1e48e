"""How weights are trained: what recipes of all kinds share."""

from typing import Any

WHOLE: dict[str, Any] = {"bits": None, "lora": None, "dtype": None}
"""All weights, in the checkpoint's own format."""

FULL: dict[str, Any] = {**WHOLE, "lr": 2e-5}
"""All weights, at the pace that suits texts."""
