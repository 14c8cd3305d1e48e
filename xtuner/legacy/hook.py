"""The hooks of a 0.1.x config: checkpoints, logs, questions asked while training."""

import re
from typing import Any

from xtuner.config.table import Table
from xtuner.conversation.builtin import SYSTEMS, TEMPLATES, find_system
from xtuner.errors import UserError
from xtuner.legacy.data import read_template_name
from xtuner.legacy.phrase import Phrase, as_phrase, short
from xtuner.legacy.vocabulary import LATER, dotted, name_in, word_of

DEFAULT_HOOKS = {
    "timer": "IterTimerHook",
    "runtime_info": "RuntimeInfoHook",
    "logger": "LoggerHook",
    "param_scheduler": "ParamSchedulerHook",
    "checkpoint": "CheckpointHook",
    "sampler_seed": "DistSamplerSeedHook",
}
SAMPLING = {"do_sample": True, "temperature": 0.1, "top_p": 0.75, "top_k": 40}
"""How 0.1.x drew the answers of EvaluateChatHook, and how they are drawn here."""
CUSTOM_HOOKS = ("DatasetInfoHook", "EvaluateChatHook", "ThroughputHook", "VarlenAttnArgsToMessageHubHook")


def read_default_hooks(root: Phrase, loop: Table) -> Table:
    """Translate `default_hooks` to the table of a `CheckpointSpec`; adds the log interval to `loop`.

    Raises:
        UserError: another hook, or an argument that is not known or cannot be followed.
    """
    # without the hook's own words 0.1.x saves nothing but the end of every epoch
    checkpoint = Table({"every": 1, "by_epoch": True, "keep": None}, file=root.table.file, line=root.table.line)
    hooks = root.part("default_hooks")
    if hooks is None:
        return checkpoint
    for name in list(hooks.table):
        if name not in DEFAULT_HOOKS:
            known = ", ".join(DEFAULT_HOOKS)
            raise UserError(f"{hooks.where(name)}: there is no default hook {name}.", f"Known: {known}.")
        phrase = hooks.phrase(name, DEFAULT_HOOKS[name])
        if phrase is None:
            continue
        if name == "logger":
            phrase.move("interval", loop, "log_every")
        elif name == "checkpoint":
            checkpoint = read_checkpoint_hook(phrase)
        phrase.done()
    return checkpoint


def read_checkpoint_hook(hook: Phrase) -> Table:
    """Translate `CheckpointHook`; its interval counts epochs unless it says otherwise, -1 means never and all."""
    spec = Table(file=hook.table.file, line=hook.table.line)
    for argument, key in (("interval", "every"), ("max_keep_ckpts", "keep")):
        value = hook.number(argument, -1)
        spec.put(key, int(value) if value > 0 else None, hook.line(argument))
    hook.move("by_epoch", spec, "by_epoch", default=True)
    hook.move("save_optimizer", spec, "optimizer")
    hook.move("save_last", spec, "last")
    return spec


def read_custom_hooks(root: Phrase, data: Table, callbacks: list[Any]) -> Table | None:
    """Translate `custom_hooks` to the table of a `ProbeSpec`, if questions are asked; adds to `callbacks`.

    Raises:
        UserError: a hook of somebody else, or an argument that is not known or cannot be followed.
    """
    probe = None
    for number, one in enumerate(root.take("custom_hooks") or []):
        where = root.where("custom_hooks")
        if isinstance(one, Table) and "type" in one and word_of(one["type"]) not in (*CUSTOM_HOOKS, *LATER):
            name = dotted(one["type"]) or short(one["type"])
            raise UserError(
                f"{one.where('type')}: {name} is a hook class of mmengine, which is not used here.",
                "Remove it, or write it as a callback: docs/design.md, 'To add something'.",
            )
        hook = as_phrase(one, CUSTOM_HOOKS, f"custom_hooks.{number}", where)
        if hook.word == "EvaluateChatHook":
            if probe is not None:
                raise UserError(f"{hook.where()}: a second EvaluateChatHook.", "Put all questions into one.")
            probe = read_probe(hook, root, data)
        elif hook.word == "ThroughputHook":
            callbacks.append("throughput")
        hook.done()
    return probe


def read_probe(hook: Phrase, root: Phrase, data: Table) -> Table:
    """Translate `EvaluateChatHook`."""
    spec = Table(file=hook.table.file, line=hook.table.line)
    questions = hook.need("evaluation_inputs")
    spec.put("questions", [questions] if isinstance(questions, str) else questions, hook.line("evaluation_inputs"))
    spec.put("system", read_system(hook, root), hook.line("system"))
    if hook.take("every_n_iters") is not None:
        hook.move("every_n_iters", spec, "every")
    hook.move("max_new_tokens", spec, "max_new_tokens")
    template = hook.take("prompt_template")
    name = None if template is None else read_template_name(template, hook.where("prompt_template"))
    # a hook without a template asks in bare words
    name = name or ("plain" if data.get("template") else None)
    if name != data.get("template"):
        spec.put("template", name, hook.line("prompt_template"))
    stop_words = [*(hook.take("stop_words") or []), *filter(None, [hook.take("stop_word")])]
    known = TEMPLATES[name].stop_words if name else ()
    if further := [word for word in stop_words if word not in known]:
        spec.put("stop_words", further, hook.line("stop_words" if "stop_words" in hook.table else "stop_word"))
    options = hook.take("generation_kwargs") or {}
    for name, value in options.items():
        if name not in SAMPLING or SAMPLING[name] != value:
            usual = ", ".join(f"{key}={usual!r}" for key, usual in SAMPLING.items())
            raise UserError(
                f"{hook.where('generation_kwargs')}: {name}={short(value)} cannot be followed: answers shown while "
                f"training are drawn with {usual}.",
                f"Remove {name} from generation_kwargs.",
            )
    return spec


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
