"""Numbers of the log for TensorBoard, in `<work dir>/<timestamp>/vis_data`, where 0.1.x put them."""

from xtuner.engine.run import Callback, Run
from xtuner.errors import UserError


class TensorBoard(Callback):
    """Writes what each log line says as scalars over the iteration."""

    first_rank_only = True

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "Writing to TensorBoard needs a package that is not installed.", "Type: pip install tensorboard"
            ) from error
        self.open = SummaryWriter

    def before_train(self, run: Run) -> None:
        """Open the file."""
        self.writer = self.open(str(run.work.visual))

    def after_log(self, run: Run, scalars: dict[str, float]) -> None:
        """Write one number each."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, run.iteration)
        self.writer.flush()

    def close(self, run: Run) -> None:
        """Close the file."""
        if hasattr(self, "writer"):
            self.writer.close()
