"""Tensor functions, each with a plain-torch reference that its tests compare it with."""

__all__: list[str] = []
