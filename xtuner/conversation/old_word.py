"""The texts of 0.1.x in the form that map functions of its time expect: `PROMPT_TEMPLATE.gemma.INSTRUCTION`."""

from typing import Any

from xtuner.conversation.builtin import SYSTEMS, TEMPLATES
from xtuner.conversation.template import ChatTemplate

IGNORE_INDEX = -100
DEFAULT_PAD_TOKEN_INDEX = 0
IMAGE_TOKEN_INDEX = -200
DEFAULT_IMAGE_TOKEN = "<image>"


class Slots(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


def to_slots(template: ChatTemplate) -> Slots:
    """Return the slots of a template; those that it does not use are left out."""
    ends = {"SUFFIX": template.suffix, "SUFFIX_AS_EOS": template.suffix_as_eos} if template.suffix else {}
    further = {"SYSTEM": template.system, **ends, "SEP": template.sep, "STOP_WORDS": list(template.stop_words)}
    return Slots(
        {
            "INSTRUCTION": template.instruction,
            **{key: value for key, value in further.items() if value not in (None, "", [])},
        }
    )


PROMPT_TEMPLATE = Slots({name: to_slots(template) for name, template in TEMPLATES.items()})
SYSTEM_TEMPLATE = Slots(SYSTEMS)
