"""Kernels in Triton, each the twin of a plain function of `ops`; imported only where a card runs them."""

__all__: list[str] = []
