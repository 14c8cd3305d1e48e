"""One call from a `RunSpec` to a work dir with a trained model in it."""

import logging
import platform
import shlex
from contextlib import suppress
from pathlib import Path

import torch

from xtuner.checkpoint.adapter import file_name, write_adapter
from xtuner.checkpoint.run_record import RunRecord, describe_base, installed_versions, is_run_folder
from xtuner.config.dump import dump_yaml
from xtuner.config.later import check_runnable
from xtuner.config.spec import RunSpec
from xtuner.conversation.jinja import to_jinja
from xtuner.engine.build import build_run
from xtuner.engine.interrupt import listen
from xtuner.engine.loop import run_loop
from xtuner.engine.memory import advise
from xtuner.engine.run import Run
from xtuner.engine.strategy.world import World, open_world
from xtuner.engine.workdir import Bystander, WorkDir
from xtuner.errors import UserError, is_out_of_memory
from xtuner.log import LOGGER
from xtuner.model.checks import read_json
from xtuner.model.lora import adapter_config
from xtuner.model.position import position_changes
from xtuner.program import program


def train(spec: RunSpec, *, name: str = "run", dump: tuple[str, str] | None = None) -> Path:
    """Run a spec to its end; returns the work dir.

    `name` names the default work dir and the experiment. `dump` is file name and text of the config copy; None: the
    spec as YAML.

    Raises:
        UserError: what went wrong and what to type; 130 or 143 as exit code when someone stopped it.
    """
    check_runnable(spec)
    with open_world() as world:
        return train_in(world, spec, name, dump or (f"{name}.yaml", dump_yaml(spec)))


def train_in(world: World, spec: RunSpec, name: str, dump: tuple[str, str]) -> Path:
    """Run a spec together with the other processes, of which rank 0 alone writes and speaks."""
    config_name, config_text = dump
    folder = Path(spec.work_dir or Path("work_dirs") / name)
    if world.rank > 0:
        LOGGER.setLevel(logging.CRITICAL)
    work = (WorkDir if world.rank == 0 else Bystander)(folder, config_name, config_text)
    record = RunRecord(
        spec=spec.model_dump(mode="json"),
        versions=installed_versions(),
        config=config_name,
    )
    world.on_loss(lambda sentence: end(work, record, sentence))
    recorded = not is_run_folder(work.folder)  # the record of an earlier run stays until this one has begun
    try:
        work.note(describe_environment(record.versions))
        work.note(f"Config:\n{config_text}")
        try:
            run = build_run(spec, name, work, record, world)
            record.base = describe_base(spec.model.path)  # a hub's model is here by now
            recorded = True
            work.write_record(record)
            with listen() as run.wish:
                run_loop(run)
                finish(run)  # who wishes to stop here has it anyway in a moment: whole, and said to be finished
        except (RuntimeError, MemoryError) as error:
            if world.is_broken(error):
                raise world.explain(error) from error
            if not is_out_of_memory(error):
                raise
            raise UserError("The memory ran out before training began.", advise(spec)) from error
    except BaseException as error:
        work.note(f"Ended: {error!r}" if not isinstance(error, UserError) else f"Ended: {error}")
        if record.status == "running":
            record.status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        if recorded:
            with suppress(UserError):  # the disk may be what failed
                work.write_record(record)
        raise
    finally:
        work.close()
    return work.folder


def end(work: WorkDir, record: RunRecord, sentence: str) -> None:
    """Say why the run ends while its main thread hangs."""
    LOGGER.error(sentence)
    record.status = "failed"
    with suppress(UserError):
        work.write_record(record)


def finish(run: Run) -> None:
    """Export the adapter, complete the record, and say what can be done with it."""
    folder = shlex.quote(str(run.work.folder))
    if run.spec.model.lora is not None:
        named = {file_name(name): tensor for name, tensor in run.strategy.gather().items()}
        tensors = {name: tensor for name, tensor in named.items() if name is not None}
        template = to_jinja(run.template) if run.template else None
        config = adapter_config(run.model)
        changes = position_changes(run.spec.model, read_json(run.spec.model.path, "config.json"))
        add = run.tokenizer.save_pretrained if run.spec.model.resize_vocab else None
        run.strategy.world.first(
            lambda: write_adapter(
                run.work.adapter, config, tensors, chat_template=template, base_changes=changes, add=add
            )
        )
        run.record.adapter = run.work.adapter.name
    run.record.status = "finished"
    run.work.write_record(run.record)
    LOGGER.info("Finished: %s", run.work.folder)
    if not run.record.adapter and not run.kept:
        LOGGER.warning("The trained weights were not saved (checkpoint.every and checkpoint.last are off).")
        return
    LOGGER.info("To talk to it, type: %s chat %s", program(), folder)
    way = "merge" if run.record.adapter else "pth_to_hf"
    LOGGER.info("To make one model of it for other programs, type: %s convert %s %s ./merged", program(), way, folder)


def describe_environment(versions: dict[str, str]) -> str:
    """Say on what a run ran, for its log."""
    lines = [f"{name}: {version}" for name, version in versions.items()]
    lines += [f"platform: {platform.platform()}", f"CPU threads: {torch.get_num_threads()}"]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        lines.append(f"card {index}: {card.name}, {card.total_memory / 2**30:.0f} GiB")
    return "Environment:\n" + "\n".join(f"    {line}" for line in lines)
