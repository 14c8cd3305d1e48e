"""What a run will take, before it begins: bytes, time, disk, and what follows. No torch but in present, run, probe."""

__all__: list[str] = []
