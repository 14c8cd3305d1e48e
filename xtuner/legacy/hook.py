"""The hooks of a 0.1.x config: checkpoints, logs, questions asked while training, hooks of the user's own."""

from collections.abc import Iterator
from typing import Any

from xtuner.config.table import Table
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.harmless import IDLE_HOOKS, LOST_HOOKS
from xtuner.legacy.phrase import Phrase, Tell, as_phrase, short, to_plain
from xtuner.legacy.probe import join_probes, read_probe
from xtuner.legacy.rows import own_name
from xtuner.legacy.vocabulary import WORDS, dotted, word_of

DEFAULT_HOOKS = {
    "timer": "IterTimerHook",
    "runtime_info": "RuntimeInfoHook",
    "logger": "LoggerHook",
    "param_scheduler": "ParamSchedulerHook",
    "checkpoint": "CheckpointHook",
    "sampler_seed": "DistSamplerSeedHook",
}
"""Hooks that are there unless they are replaced or set to None; others may stand beside them, under any name."""
OWN = ("DatasetInfoHook", "EvaluateChatHook", "ThroughputHook", "VarlenAttnArgsToMessageHubHook", "HFCheckpointHook")
HOOKS = (*OWN, *DEFAULT_HOOKS.values(), *IDLE_HOOKS, *LOST_HOOKS)
BEST = {"auto": "auto", **dict.fromkeys(("loss", "val_loss", "val/loss"), "val_loss")}
"""Values of `save_best` -> those of `checkpoint.best`; others are names of numbers."""


def read_hooks(
    root: Phrase, model: Table, data: Table, loop: Table, callbacks: list[Any], tell: Tell
) -> tuple[Table, Table | None]:
    """Translate `default_hooks` and `custom_hooks` to the table of a `CheckpointSpec` and, if questions are asked, that
    of a `ProbeSpec`; adds the log interval to `loop`, and to `callbacks`.

    Raises:
        UserError: a hook that is not known, or an argument that is not known or cannot be followed.
    """
    # without the hook's own words 0.1.x saves nothing but the end of every epoch
    checkpoint = Table({"every": 1, "by_epoch": True, "keep": None}, file=root.table.file, line=root.table.line)
    probe: Table | None = None
    named = root.part("default_hooks")
    if named is not None and "checkpoint" in named.table and named.table["checkpoint"] is None:
        checkpoint.update(every=None, by_epoch=False, last=False)
    for value, path, where in all_hooks(root):
        if isinstance(value, Table) and "type" in value and word_of(value["type"]) not in WORDS:
            callbacks.append(read_own_hook(value))
            continue
        hook = as_phrase(value, HOOKS, path, where)
        if hook.word == "LoggerHook":
            hook.move("interval", loop, "log_every")
        elif hook.word == "CheckpointHook":
            checkpoint = read_checkpoint_hook(hook)
        elif hook.word == "EvaluateChatHook":
            found = read_probe(hook, root, model, data, tell)
            if probe is None:
                probe = found
            else:
                join_probes(probe, found, hook.where())
        elif hook.word == "ThroughputHook":
            callbacks.append("throughput")
        elif hook.word == "HFCheckpointHook":
            options = Table(file=hook.table.file, line=hook.table.line)
            if hook.take("out_dir") is not None:
                hook.move("out_dir", options, "folder")
            callbacks.append({"name": "hf_model", "options": options} if options else "hf_model")
        elif hook.word in LOST_HOOKS:
            raise UserError(f"{hook.where()}: {hook.word} cannot be followed: {LOST_HOOKS[hook.word]}.", "Remove it.")
        elif hook.word in IDLE_HOOKS:
            tell(f"{hook.where()}: {hook.word} has no effect: {IDLE_HOOKS[hook.word]}.")
            continue
        hook.done()
    return checkpoint, probe


def all_hooks(root: Phrase) -> Iterator[tuple[Any, str, str]]:
    """Yield every hook with its path and its file and line."""
    named = root.part("default_hooks")
    for name, value in named.table.items() if named is not None else ():
        if value is not None:
            if isinstance(value, Table) and "type" not in value and name in DEFAULT_HOOKS:
                value = value.copy()
                value.put("type", DEFAULT_HOOKS[name], value.line)
            assert named is not None
            yield value, f"default_hooks.{name}", named.where(name)
    for number, value in enumerate(root.take("custom_hooks") or []):
        yield value, f"custom_hooks.{number}", root.where("custom_hooks")


def read_checkpoint_hook(hook: Phrase) -> Table:
    """Translate `CheckpointHook`; its interval counts epochs unless it says otherwise, -1 means never and all.

    Raises:
        UserError: the best by several numbers, or files elsewhere than in the work dir.
    """
    spec = Table(file=hook.table.file, line=hook.table.line)
    for argument, key in (("interval", "every"), ("max_keep_ckpts", "keep")):
        value = hook.number(argument, -1)
        spec.put(key, int(value) if value > 0 else None, hook.line(argument))
    hook.move("by_epoch", spec, "by_epoch", default=True)
    hook.move("save_optimizer", spec, "optimizer")
    hook.move("save_last", spec, "last")
    hook.only("out_dir", None, fix="Checkpoints stand in the work dir: set work_dir, or --work-dir.")
    hook.only("save_begin", 0, None, fix="Remove save_begin, and max_keep_ckpts says how many are kept.")
    hook.only("filename_tmpl", None, "iter_{}.pth", "epoch_{}.pth", fix="Remove filename_tmpl: names are iter_N.pth.")
    best, rule = one_of(hook, "save_best"), one_of(hook, "rule")
    if best is not None:
        spec.put("best", BEST.get(best, best), hook.line("save_best"))
        if rule is not None:
            spec.put("best_rule", rule, hook.line("rule"))
    return spec


def one_of(hook: Phrase, argument: str) -> Any:
    """Return an argument that may be a list of one.

    Raises:
        UserError: it is a list of several.
    """
    value = hook.take(argument)
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise UserError(f"{hook.where(argument)}: {argument} names several.", f"Write one: '{value[0]}'.")
        value = value[0] if value else None
    return value


def read_own_hook(hook: Table) -> Table:
    """Translate a hook of the user's own, `package.module.Class` or `file.py:Class`, to a callback.

    Raises:
        UserError: it is a word that hooks do not have, or a hook of mmengine.
    """
    path = dotted(hook["type"])
    if path is None or path.startswith(("mmengine.", "mmcv.", "xtuner.")) or not {".", ":"} & set(path):
        name = path or short(hook["type"])
        known = ", ".join(OWN)
        if path and path.startswith(("mmengine.", "mmcv.")):
            what = f"{hook.where('type')}: {name} is a hook class of mmengine, which is not used here."
            raise UserError(what, "Remove it.")
        hint = did_you_mean(name.rsplit(".", 1)[-1], HOOKS) or f"Known: {known}; or 'my_file.py:MyCallback'."
        raise UserError(f"{hook.where('type')}: there is no hook {name}.", hint)
    options = {name: to_plain(value) for name, value in hook.items() if name != "type"}
    return Table({"name": own_name(path, hook.file), "options": options}, file=hook.file, line=hook.line)
