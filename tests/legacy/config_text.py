"""Passages of rendered 0.1.x configs that tests edit, and how."""

WARM = """by_epoch=True,
        begin=0,
        end=warmup_ratio * max_epochs,
        convert_to_iter_based=True"""
FALL = """by_epoch=True,
        begin=warmup_ratio * max_epochs,
        end=max_epochs,
        convert_to_iter_based=True"""
LOOP = "train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)"


def edit(text: str, *edits: tuple[str, str]) -> str:
    """Replace passages; one that is not there is a failure."""
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text
