"""`EvaluateChatHook` of a 0.1.x config: the questions asked while training, and how answers are drawn."""

import re
from typing import Any

from xtuner.config.table import Table
from xtuner.conversation.builtin import SYSTEMS, TEMPLATES, find_system
from xtuner.errors import UserError
from xtuner.legacy.phrase import Phrase, Tell, short
from xtuner.legacy.template import Template, read_template
from xtuner.legacy.vision import add_processor
from xtuner.legacy.vocabulary import dotted, name_in

DRAWN = ("temperature", "top_k", "top_p", "repetition_penalty")
"""Arguments of `generate` that a `ProbeSpec` has under the same name."""
USUAL: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
"""Arguments of `generate` that say with these values what is done anyway."""


def read_probe(hook: Phrase, root: Phrase, model: Table, data: Table, tell: Tell) -> Table:
    """Translate the hook to the table of a `ProbeSpec`.

    Raises:
        UserError: an argument that is not known or cannot be followed.
    """
    spec = Table(file=hook.table.file, line=hook.table.line)
    questions = hook.need("evaluation_inputs")
    spec.put("questions", [questions] if isinstance(questions, str) else questions, hook.line("evaluation_inputs"))
    spec.put("system", read_system(hook, root), hook.line("system"))
    if hook.number("every_n_iters", 0) > 0:  # 0 and -1: at checkpoints alone
        hook.move("every_n_iters", spec, "every")
    hook.move("max_new_tokens", spec, "max_new_tokens")
    read_drawing(hook, spec, tell)
    images = hook.take("evaluation_images")
    processor = hook.take("image_processor")
    if images is not None and "vision" in model:
        add_processor(processor, model["vision"], hook.where("image_processor"))
        listed = [images] if isinstance(images, str) else list(images)
        spec.put("images", listed, hook.line("evaluation_images"))
    elif images is not None:
        raise UserError(
            f"{hook.where('evaluation_images')}: questions with pictures, and the model reads text alone.",
            "Remove evaluation_images.",
        )
    template = read_probe_template(hook, data)
    if template != data.get("template"):
        spec.put("template", template, hook.line("prompt_template"))
    stop_words = [*(hook.take("stop_words") or []), *filter(None, [hook.take("stop_word")])]
    known = TEMPLATES[template].stop_words if isinstance(template, str) and template in TEMPLATES else ()
    if further := [word for word in stop_words if word not in known]:
        spec.put("stop_words", further, hook.line("stop_words" if "stop_words" in hook.table else "stop_word"))
    return spec


def read_drawing(hook: Phrase, spec: Table, tell: Tell) -> None:
    """Translate `generation_kwargs`: how answers are drawn; tells which of its arguments have no effect.

    Raises:
        UserError: it is not a dict.
    """
    given = hook.part("generation_kwargs")
    if given is None:
        return
    if given.take("max_new_tokens") is not None:  # it has the last word
        given.move("max_new_tokens", spec, "max_new_tokens")
    for argument in DRAWN:
        if given.take(argument) is not None:
            given.move(argument, spec, argument)
    if not given.take("do_sample", True):
        spec.put("temperature", 0.0, given.line("do_sample"))
    idle = []
    for name, value in given.table.items():
        if name not in (*DRAWN, "max_new_tokens", "do_sample") and (name not in USUAL or USUAL[name] != value):
            idle.append(f"{name}={short(value)}")
    if idle:
        tell(
            f"{hook.where('generation_kwargs')}: {', '.join(idle)} "
            f"{'has' if len(idle) == 1 else 'have'} no effect on the answers shown while training."
        )


def join_probes(first: Table, second: Table, where: str) -> None:
    """Add the questions of a second hook to those of the first.

    Raises:
        UserError: they are asked in another way.
    """
    for key in dict.fromkeys((*first, *second)):
        if key not in ("questions", "images") and first.get(key) != second.get(key):
            raise UserError(
                f"{where}: a second EvaluateChatHook asks with {key}={short(second.get(key))}, the first one with "
                f"{short(first.get(key))}.",
                "A run has one set of questions: give both hooks the same settings.",
            )
    for key in ("questions", "images"):
        if key in second:
            first.put(key, [*first.get(key, []), *second[key]], second.lines.get(key, second.line))


def read_probe_template(hook: Phrase, data: Table) -> Template | None:
    """Return the template of the questions; None where neither they nor the data have one."""
    template, instruction = hook.take("prompt_template"), hook.take("instruction")
    if template is not None:
        return read_template(template, hook.where("prompt_template"))
    if instruction is not None:  # the first versions named a part of a template, or wrote it out
        name, _, part = (dotted(instruction) or "").rpartition(".")
        named = part in ("INSTRUCTION", "INSTRUCTION_START") and name_in(name, "PROMPT_TEMPLATE")
        return read_template(name if named else {"INSTRUCTION": instruction}, hook.where("instruction"))
    # a hook without a template asks in bare words
    return "plain" if data.get("template") else None


def read_system(hook: Phrase, root: Phrase) -> str:
    """Return the system text: a named one or the words themselves, slots filled from the variables of the config."""
    system = hook.take("system") or ""
    name = name_in(system, "SYSTEM_TEMPLATE")
    if name is not None:
        try:
            find_system(name)
        except UserError as error:
            raise UserError(f"{hook.where('system')}: {error.what}", error.fix) from error
        system = SYSTEMS[name]
    if not isinstance(system, str):
        raise UserError(f"{hook.where('system')}: system is {short(system)}; it must be a text.", "Write system='...'.")
    values = {key: value for key, value in root.table.items() if isinstance(value, str | int | float)}
    return re.sub(r"\{(\w+)\}", lambda slot: str(values.get(slot[1], slot[0])), system)
