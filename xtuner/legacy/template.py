"""Chat templates of a 0.1.x config: `PROMPT_TEMPLATE.x`, its name as a text, or one that is written out as a dict."""

from collections.abc import Mapping
from typing import Any

from xtuner.config.ref import Ref
from xtuner.config.table import Table
from xtuner.conversation.builtin import find_template
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.phrase import Phrase, as_phrase, short
from xtuner.legacy.vocabulary import name_in

SLOTS: dict[str, str] = {
    "SYSTEM": "system",
    "INSTRUCTION": "instruction",
    "SUFFIX": "suffix",
    "SUFFIX_AS_EOS": "suffix_as_eos",
    "SEP": "sep",
    "STOP_WORDS": "stop_words",
}
"""Slots of a prompt template of 0.1.x -> fields of a `TemplateSpec`."""
FACTORY = ("template_map_fn_factory", "template_map_fn")

Template = str | Table


def read_template_map(data: Phrase) -> Template | None:
    """Translate `template_map_fn`; None when there is none.

    Raises:
        UserError: it is not `dict(type=template_map_fn_factory, template=...)`, or no template.
    """
    function = data.take("template_map_fn")
    if function is None:
        return None
    phrase = as_phrase(function, FACTORY, "template_map_fn", data.where("template_map_fn"))
    template = phrase.need("template")
    phrase.done()
    return read_template(template, phrase.where("template"))


def read_template(template: Any, where: str) -> Template:
    """Return the name of a template, or its fields when it is written out.

    Raises:
        UserError: no such template, or a slot that templates do not have.
    """
    if isinstance(template, Mapping):
        return read_slots(template, where)
    name = name_in(template, "PROMPT_TEMPLATE")
    if name is None and isinstance(template, str):
        name = template
    if name is None:
        shown = template.path if isinstance(template, Ref) else short(template)
        raise UserError(f"{where}: {shown} is not a named chat template.", "Write PROMPT_TEMPLATE.internlm2_chat.")
    if ":" in name:
        return name  # the user's own, `file.py:name`
    try:
        return find_template(name).name
    except UserError as error:
        own = "One of your own is written out: prompt_template = dict(INSTRUCTION='...{input}...', SUFFIX='...')."
        raise UserError(f"{where}: {error.what}", f"{error.fix} {own}") from error


def read_slots(slots: Mapping[str, Any], where: str) -> Table:
    """Translate a template that is written out."""
    table = slots if isinstance(slots, Table) else Table(slots)
    spec = Table(file=table.file, line=table.line)
    for slot, value in table.items():
        place = table.where(slot) or where
        if slot not in SLOTS:
            known = ", ".join(SLOTS)
            hint = did_you_mean(slot, SLOTS) or f"Known: {known}."
            raise UserError(f"{place}: a chat template has no slot {slot}.", hint)
        if value is not None:
            as_list = slot == "STOP_WORDS" and isinstance(value, str)
            spec.put(SLOTS[slot], [value] if as_list else value, table.lines.get(slot, table.line))
    instruction = spec.get("instruction")
    if not isinstance(instruction, str) or "{input}" not in instruction:
        raise UserError(f"{where}: the template's INSTRUCTION does not hold {{input}}.", "Add it: 'User: {input}\\n'.")
    return spec
