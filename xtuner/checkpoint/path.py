"""The paths of training checkpoints as people type and paste them; nothing is read (no torch here)."""

from pathlib import Path

from xtuner.errors import UserError

STATE_FILES = ("*_states.pt", "*/*_states.pt", ".metadata")
"""What only the folder of a training checkpoint holds."""


def strip_colon(path: Path) -> Path:
    """Drop a colon at the end that is not part of the name: `ls -t` prints folders that way and people paste it."""
    text = str(path)
    return Path(text[:-1]) if text.endswith(":") and not path.exists() else path


def is_state(path: str) -> bool:
    """Whether a path names a training checkpoint, not the folder of an adapter: `.pth`, or a folder of DeepSpeed or of
    `torch.distributed.checkpoint`, whatever it is called."""
    found = strip_colon(Path(path))
    return found.suffix == ".pth" or any(next(found.glob(name), None) for name in STATE_FILES)


def no_checkpoint(path: Path) -> UserError:
    """Make the error of a checkpoint that is not there."""
    if path.name.endswith(("model_states.pt", "optim_states.pt")):  # `ls -t *.pth` of one folder lists what is in it
        return UserError(
            f"There is no {path}; a file of that name belongs to a checkpoint that is a folder.",
            "Give the folder, such as iter_500.pth, not a file inside it.",
        )
    return UserError(f"There is no checkpoint {path}.", "Type: ls -td work_dirs/*/*.pth")
