"""Laws that every training keeps, measured on the user's own machine, model and data."""

__all__: list[str] = []
