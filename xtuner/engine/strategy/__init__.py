"""How a run is spread over devices; one module per way, all behind `base.Strategy`."""

__all__: list[str] = []
