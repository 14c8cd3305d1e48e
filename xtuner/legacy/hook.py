"""The hooks of a 0.1.x config: checkpoints, logs, questions asked while training."""

import re
from typing import Any

from xtuner.config.table import Table
from xtuner.conversation.builtin import SYSTEMS, TEMPLATES, find_system
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.phrase import Phrase, as_phrase, short
from xtuner.legacy.rows import own_name
from xtuner.legacy.template import Template, read_template
from xtuner.legacy.vision import add_processor
from xtuner.legacy.vocabulary import WORDS, dotted, name_in, word_of

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
CUSTOM_HOOKS = (
    *("DatasetInfoHook", "EvaluateChatHook", "ThroughputHook", "VarlenAttnArgsToMessageHubHook", "HFCheckpointHook"),
)


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


def read_custom_hooks(root: Phrase, model: Table, data: Table, callbacks: list[Any]) -> Table | None:
    """Translate `custom_hooks` to the table of a `ProbeSpec`, if questions are asked; adds to `callbacks`.

    Raises:
        UserError: a hook of mmengine, or an argument that is not known or cannot be followed.
    """
    probe = None
    for number, one in enumerate(root.take("custom_hooks") or []):
        if isinstance(one, Table) and "type" in one and word_of(one["type"]) not in WORDS:
            callbacks.append(read_own_hook(one))
            continue
        hook = as_phrase(one, CUSTOM_HOOKS, f"custom_hooks.{number}", root.where("custom_hooks"))
        if hook.word == "EvaluateChatHook":
            if probe is not None:
                raise UserError(f"{hook.where()}: a second EvaluateChatHook.", "Put all questions into one.")
            probe = read_probe(hook, root, model, data)
        elif hook.word == "ThroughputHook":
            callbacks.append("throughput")
        elif hook.word == "HFCheckpointHook":
            options = Table(file=hook.table.file, line=hook.table.line)
            if hook.take("out_dir") is not None:
                hook.move("out_dir", options, "folder")
            callbacks.append({"name": "hf_model", "options": options} if options else "hf_model")
        hook.done()
    return probe


def read_own_hook(hook: Table) -> Table:
    """Translate a hook of the user's own, `package.module.Class` or `file.py:Class`, to a callback.

    Raises:
        UserError: it is a word that hooks do not have, or a hook of mmengine.
    """
    path = dotted(hook["type"])
    if path is None or path.startswith(("mmengine.", "mmcv.", "xtuner.")) or not {".", ":"} & set(path):
        name = path or short(hook["type"])
        known = ", ".join(CUSTOM_HOOKS)
        hint = did_you_mean(name.rsplit(".", 1)[-1], CUSTOM_HOOKS) or f"Known: {known}; or 'my_file.py:MyCallback'."
        raise UserError(
            f"{hook.where('type')}: {name} is a hook class of mmengine, which is not used here."
            if path and path.startswith(("mmengine.", "mmcv."))
            else f"{hook.where('type')}: there is no hook {name}.",
            hint,
        )
    options = hook.copy()
    del options["type"]
    return Table({"name": own_name(path, hook.file), "options": options}, file=hook.file, line=hook.line)


def read_probe(hook: Phrase, root: Phrase, model: Table, data: Table) -> Table:
    """Translate `EvaluateChatHook`."""
    spec = Table(file=hook.table.file, line=hook.table.line)
    questions = hook.need("evaluation_inputs")
    spec.put("questions", [questions] if isinstance(questions, str) else questions, hook.line("evaluation_inputs"))
    spec.put("system", read_system(hook, root), hook.line("system"))
    if hook.take("every_n_iters") is not None:
        hook.move("every_n_iters", spec, "every")
    options = dict(hook.take("generation_kwargs") or {})
    hook.move("max_new_tokens", spec, "max_new_tokens")
    if "max_new_tokens" in options:  # it had the last word
        spec.put("max_new_tokens", options.pop("max_new_tokens"), hook.line("generation_kwargs"))
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
    for name, value in options.items():
        if name not in SAMPLING or SAMPLING[name] != value:
            usual = ", ".join(f"{key}={usual!r}" for key, usual in SAMPLING.items())
            raise UserError(
                f"{hook.where('generation_kwargs')}: {name}={short(value)} cannot be followed: answers shown while "
                f"training are drawn with {usual}.",
                f"Remove {name} from generation_kwargs.",
            )
    return spec


def read_probe_template(hook: Phrase, data: Table) -> Template | None:
    """Return the template of the questions; None where neither they nor the data have one."""
    template = hook.take("prompt_template")
    if template is not None:
        return read_template(template, hook.where("prompt_template"))
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
