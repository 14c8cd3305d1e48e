"""What a `RunSpec` can say that no engine of this version runs yet; a row leaves when its part lands."""

from collections.abc import Iterator

from xtuner.config.spec import RunSpec
from xtuner.errors import UserError

OBJECTIVES: dict[str, str] = {
    "dpo": "preference training",
    "orpo": "preference training",
    "reward": "reward models",
}
"""Values of `objective` -> what they are for."""
CALLBACKS: dict[str, str] = {
    "mmlu": "the MMLU test",
}
"""Values of `callbacks` -> what they are for."""

WITHOUT: dict[str, str] = {
    "objective": "Text models are trained with objective sft; xtuner list-cfg shows such configs.",
    "model.vision": "Text models are trained; xtuner list-cfg shows configs without llava and internvl in the name.",
    "callbacks": "Leave it out to train without.",
}
"""Settings -> what to do instead."""


def check_runnable(spec: RunSpec, *settings: str) -> None:
    """Refuse a run that is understood but cannot be run yet, before anything is looked for or loaded.

    With `settings` only these matter: a conversion does not care how many cards have trained.

    Raises:
        UserError: says which setting, and what to do instead.
    """
    for setting, what in missing_parts(spec):
        if not settings or setting in settings:
            raise UserError(
                f"{setting}: {what} can be read from a config, but this version cannot run it yet.", WITHOUT[setting]
            )


def missing_parts(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield setting and meaning of everything in `spec` that nothing runs yet."""
    if spec.objective.name in OBJECTIVES:
        yield "objective", f"{spec.objective.name} ({OBJECTIVES[spec.objective.name]})"
    if spec.model.vision is not None:
        yield "model.vision", "a model that sees pictures"
    for callback in spec.callbacks:
        if callback.name in CALLBACKS:
            yield "callbacks", f"{callback.name} ({CALLBACKS[callback.name]})"
