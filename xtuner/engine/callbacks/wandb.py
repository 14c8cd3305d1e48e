"""Numbers of the log for Weights & Biases; its own files go beside the log."""

from typing import Any

from xtuner.engine.run import Callback, Run
from xtuner.errors import UserError


class WandB(Callback):
    """Sends what each log line says; WANDB_MODE=offline keeps it here.

    `project`, `name`, `entity`, `group`, `tags`, `notes` and `mode` go to `wandb.init`.
    """

    def __init__(
        self,
        project: str = "xtuner",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "Writing to Weights & Biases needs a package that is not installed.", "Type: pip install wandb"
            ) from error
        self.library: Any = wandb
        self.options = {"project": project, "name": name, "entity": entity, "group": group, "tags": tags}
        self.options |= {"notes": notes, "mode": mode}
        self.session: Any = None

    def before_train(self, run: Run) -> None:
        """Open a session under the name of the run."""
        options = {**self.options, "name": self.options["name"] or run.name}
        self.session = self.library.init(dir=str(run.work.visual), config=run.spec.model_dump(mode="json"), **options)

    def after_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Send one line."""
        self.session.log(dict(scalars), step=run.iteration)

    def close(self, run: Run) -> None:
        """End the session; a run that stopped early is marked as such."""
        if self.session is not None:
            self.session.finish(exit_code=0 if run.last else 1)
