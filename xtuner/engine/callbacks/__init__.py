"""What happens around the iterations; one module per duty, all behind `engine.run.Callback`."""

__all__: list[str] = []
