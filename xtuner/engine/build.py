"""A `RunSpec` becomes a `Run`: what can fail cheaply is made first, the model last."""

from typing import Any

import torch

from xtuner.checkpoint.run_record import RunRecord
from xtuner.config.choice import Choice, build
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import describe_template
from xtuner.dataset.collate import collate
from xtuner.dataset.pipeline import build_dataset
from xtuner.dataset.sampler import Order
from xtuner.engine import CALLBACKS, STRATEGIES
from xtuner.engine.callbacks.best import KeepBest, check_best
from xtuner.engine.callbacks.checkpoint import Checkpoint
from xtuner.engine.callbacks.data_info import DataInfo
from xtuner.engine.callbacks.probe import Probe
from xtuner.engine.callbacks.progress import ProgressLog
from xtuner.engine.callbacks.validation import Validation
from xtuner.engine.footing import check_base, check_data, describe_footing
from xtuner.engine.fp8_gate import gate_fp8
from xtuner.engine.idle import check_compiler, idle_settings
from xtuner.engine.memory import checkpoint_bytes
from xtuner.engine.metrics import Metrics
from xtuner.engine.optim import build_optimiser, check_optimiser
from xtuner.engine.plan.run import plan_run
from xtuner.engine.precision import Precision, choose_precision, find_device
from xtuner.engine.resume import check_same, check_spec, find_checkpoint, read_meta, restore
from xtuner.engine.run import Callback, Run
from xtuner.engine.schedule import build_schedule
from xtuner.engine.spike import IN_A_ROW, SpikeGuard
from xtuner.engine.strategy.base import Strategy
from xtuner.engine.strategy.world import World
from xtuner.engine.workdir import WorkDir, check_common
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.attention import check_windows
from xtuner.model.checks import check_rotary, check_vocabulary
from xtuner.model.foreign_code import announce_code
from xtuner.model.head import base_model
from xtuner.model.load import check_spec as check_model
from xtuner.model.load import load_model, load_tokenizer
from xtuner.objective import OBJECTIVES


def build_run(spec: RunSpec, name: str, work: WorkDir, record: RunRecord, world: World) -> Run:
    """Make everything a training needs; a resumed one is put where its checkpoint left it.

    Raises:
        UserError: whatever in the spec cannot be done; says what to change.
    """
    device = find_device()
    precision = choose_precision(spec, device)
    LOGGER.info(precision.why)
    is_cpu = device.type == "cpu"
    check_compiler(spec, is_cpu=is_cpu)
    native = not is_cpu and torch.cuda.is_bf16_supported(including_emulation=False)
    called = "a CPU" if is_cpu else torch.cuda.get_device_name(device)
    for sentence in idle_settings(spec, called, is_cpu=is_cpu, has_bfloat16=native):
        LOGGER.info(sentence)
    strategy = build_strategy(spec, device, precision, world)
    if strategy.all_write:
        check_common(work.folder, world)
    objective = build(OBJECTIVES, spec.objective, "objective")
    if spec.loop.validate_every is not None and spec.data.validation is None:
        raise UserError(
            "loop.validate_every is set, and there is nothing to validate on.",
            "Add data.validation=0.05 (a share of the training rows), or data.validation=FILE.",
        )
    extras = build_extras(spec, world)
    validation = [Validation()] if spec.data.validation is not None else []
    check_best(spec, [*validation, *extras])

    check_model(spec.model, train=True)
    check_optimiser(spec, world.size, scaled=precision.scaled)
    checkpoint = find_checkpoint(spec.resume, work.folder)
    meta = read_meta(strategy, checkpoint) if checkpoint else None
    check_same(checkpoint, meta, world)
    seed = spec.seed
    if checkpoint and meta:
        check_spec(spec, meta, checkpoint)
        check_base(spec.model.path, meta, checkpoint)
        seed = meta["seed"]
        if seed != spec.seed:
            LOGGER.info("The seed of the checkpoint, %d, is used, not %d.", seed, spec.seed)

    if spec.model.trust_remote_code:
        announce_code(spec.model.path, LOGGER.info)
    tokenizer = load_tokenizer(
        spec.model.tokenizer or spec.model.path,
        options=spec.model.tokenizer_options,
        trust_remote_code=spec.model.trust_remote_code,
    )
    data = world.once_a_machine("data", lambda: build_dataset(spec.data, tokenizer, seed=seed, tell=LOGGER.info))
    for line in data.report.lines():
        LOGGER.info(line)
    record.template = describe_template(data.template) if data.template else None
    record.data = {"fingerprint": data.fingerprint, "report": data.report.to_dict()}
    if checkpoint and meta:
        check_data(data, meta, checkpoint, accept=spec.resume_changed_data)
    probe = [Probe(spec.probe, data.template)] if spec.probe and spec.probe.questions else []
    order = Order(
        len(data.train),
        spec.loop.batch_size,
        spec.data.shuffle,
        seed,
        rank=strategy.reader,
        world=strategy.readers,
        lengths=data.train.sizes(),
        accumulate=spec.loop.accumulate,
    )
    num_iters = count_iters(spec, order.iters_per_epoch)
    schedule = build_schedule(spec.schedule, spec.optim.lr, num_iters, order.iters_per_epoch)

    plan = plan_run(spec, device, data.train.sizes(), num_iters, world)
    LOGGER.info("Loading %s", spec.model.path)
    torch.manual_seed(seed)  # a new adapter's weights are random
    packed = several_in_a_row(spec)
    home = str(strategy.loading_device(spec.model.quant is not None))
    settled = plan.resolved().model if plan else spec.model
    options: dict[str, Any] = {"dtype": precision.weights, "train": True, "packed": packed}
    if spec.model.quant is not None and spec.model.quant.type == "fp8":
        first = order.rows(0)
        batch = collate([data.train[row] for row in first], first)
        options["make_fp8"] = gate_fp8(spec.model.quant, batch, precision, record)
    model = load_model(settled, device=home, **options)
    check_rotary(base_model(model).config, spec.data.max_length, packed=packed)
    check_windows(base_model(model), spec.data.max_length)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        check_vocabulary(model, data.train.highest_id(), spec.model.tokenizer or spec.model.path)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    num_trained = sum(parameter.numel() for parameter in trained)  # before some of it goes to other cards
    work.require_space(checkpoint_bytes(trained, spec, float32=strategy.keeps_float32))
    del trained  # where weights are spread, the whole ones go
    model = strategy.place(model, lambda placed: build_optimiser(spec.optim, placed, seed))
    run = Run(
        spec=spec,
        name=name,
        seed=seed,
        tokenizer=tokenizer,
        data=data,
        objective=objective,
        strategy=strategy,
        model=model,
        order=order,
        schedule=schedule,
        num_iters=num_iters,
        metrics=Metrics(
            device,
            spec.loop.log_every,
            spec.loop.accumulate * (1 + IN_A_ROW * spec.loop.skip_spikes),
            check_loss=not spec.loop.skip_spikes,
            check_norm=not precision.scaled and not spec.loop.skip_spikes,
            add_ranks=world.sum,
        ),
        work=work,
        record=record,
        footing=describe_footing(spec.model.path, data),
        plan=plan,
        spikes=SpikeGuard() if spec.loop.skip_spikes else None,
        callbacks=[
            DataInfo(),
            ProgressLog(None if world.rank == 0 else False),
            Checkpoint(),
            *validation,
            *([KeepBest()] if spec.checkpoint.best else []),
            *probe,
            *extras,
        ],
    )
    LOGGER.info(
        "%d iteration%s (%d per epoch), %d per optimiser step; %s trained weights, %s",
        num_iters,
        "" if num_iters == 1 else "s",
        order.iters_per_epoch,
        spec.loop.accumulate,
        f"{num_trained:,}",
        spec.optim.name,
    )
    if checkpoint and meta:
        restore(run, checkpoint, meta)
    return run


def build_strategy(spec: RunSpec, device: torch.device, precision: Precision, world: World) -> Strategy:
    """Make the strategy; "auto" is one process alone, or data parallel of several.

    Raises:
        UserError: unknown, or not possible with so many processes, this device or this precision.
    """
    choice = spec.strategy
    if choice.name == "auto":
        choice = Choice(name="single" if world.size == 1 else "ddp", options=choice.options)
    strategy: Strategy = build(
        STRATEGIES, choice, "strategy", device=device, precision=precision, world=world, spec=spec
    )
    if world.size > 1:
        LOGGER.info("%d processes, strategy %s", world.size, choice.name)
    return strategy


def build_extras(spec: RunSpec, world: World) -> list[Callback]:
    """Make the callbacks that the spec names.

    Raises:
        UserError: unknown, or something else.
    """
    extras: list[Callback] = [build(CALLBACKS, choice, "callback") for choice in spec.callbacks]
    for choice, extra in zip(spec.callbacks, extras, strict=True):
        if not isinstance(extra, Callback):
            raise UserError(f"The callback {choice.name} is none.", "It must be an xtuner.engine.run.Callback.")
    return [extra for extra in extras if world.rank == 0 or not extra.first_rank_only]


def several_in_a_row(spec: RunSpec) -> bool:
    """Whether a row can hold several samples, which the model must then keep apart; pairs of answers share one too."""
    return spec.data.pack or spec.loop.batch_size > 1 or spec.objective.name != "sft"


def count_iters(spec: RunSpec, iters_per_epoch: int) -> int:
    """Return the length of a run in iterations; part of an epoch is cut down to whole ones.

    Raises:
        UserError: there is nothing to train on.
    """
    if iters_per_epoch < 1:
        raise UserError("There is nothing to train on: the data gave no batch.", "Check data.train.")
    if spec.loop.max_iters is not None:
        num_iters = spec.loop.max_iters
    else:
        num_iters = max(1, int(spec.loop.epochs * iters_per_epoch + 1e-6))
    if spec.loop.accumulate > num_iters:
        LOGGER.warning(
            "loop.accumulate is %d and the run has only %d iterations: the weights move once, at the end.",
            spec.loop.accumulate,
            num_iters,
        )
    return num_iters
