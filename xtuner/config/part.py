"""What all parts of a `RunSpec` have in common: unknown keys are errors, and so are settings without an effect."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

IDLE = "idle"
"""Type of the error of a setting without an effect; its context says which (`name`) and `why`."""

CLASH = "clash"
"""Type of the error of settings that do not go together; its context says `what` and the `fix`."""


class Part(BaseModel):
    """A part of a `RunSpec`: knows its keys and refuses others."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )

    def _refuse_idle(self, why: str, *names: str) -> None:
        """Refuse settings that differ from their defaults although they have no effect `why`."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise PydanticCustomError(IDLE, "{name} has no effect {why}", {"name": name, "why": why})
