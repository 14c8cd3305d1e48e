"""Which folders an export must not be written into, because loaders would mix what is there with what comes."""

from pathlib import Path

from xtuner.checkpoint.model_folder import is_adapter
from xtuner.errors import UserError


def refuse_folder(save_dir: Path, *sources: Path) -> None:
    """Refuse to write a model over one of its sources, or next to an adapter that loaders would put on top of it.

    Raises:
        UserError: such a folder.
    """
    if any(save_dir.exists() and save_dir.resolve() == source.resolve() for source in sources):
        raise UserError(f"{save_dir} is the folder that is read from.", "Give another folder to save into.")
    if is_adapter(save_dir):
        raise UserError(
            f"{save_dir} holds an adapter, which loaders would put on top of the model.", "Give another folder."
        )


def refuse_model_folder(save_dir: Path) -> None:
    """Refuse to write an adapter into the folder of a model: from then on loaders would put it on top of that model.

    Raises:
        UserError: `save_dir` holds a model.
    """
    if (save_dir / "config.json").is_file():
        raise UserError(
            f"{save_dir} holds a model, and loaders would put this adapter on top of it.", "Give another folder."
        )
