"""A `RunSpec` becomes a `Run`: what can fail cheaply is made first, the model last."""

import torch

from xtuner.checkpoint.run_record import RunRecord
from xtuner.config.choice import build, pick
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import describe_template
from xtuner.dataset.pipeline import build_dataset
from xtuner.dataset.sampler import Order
from xtuner.engine import CALLBACKS, OPTIMISERS, STRATEGIES
from xtuner.engine.callbacks.checkpoint import Checkpoint
from xtuner.engine.callbacks.data_info import DataInfo
from xtuner.engine.callbacks.probe import Probe
from xtuner.engine.callbacks.progress import ProgressLog
from xtuner.engine.callbacks.validation import Validation
from xtuner.engine.memory import checkpoint_bytes
from xtuner.engine.metrics import Metrics
from xtuner.engine.optim import build_optimiser
from xtuner.engine.precision import choose_precision, find_device
from xtuner.engine.resume import check_data, check_spec, find_checkpoint, read_meta, restore
from xtuner.engine.run import Callback, Run
from xtuner.engine.schedule import build_schedule
from xtuner.engine.workdir import WorkDir
from xtuner.errors import UserError
from xtuner.log import LOGGER
from xtuner.model.checks import check_vocabulary
from xtuner.model.load import check_spec as check_model
from xtuner.model.load import load_model, load_tokenizer
from xtuner.objective import OBJECTIVES


def build_run(spec: RunSpec, name: str, work: WorkDir, record: RunRecord) -> Run:
    """Make everything a training needs; a resumed one is put where its checkpoint left it.

    Raises:
        UserError: whatever in the spec cannot be done; says what to change.
    """
    device = find_device()
    precision = choose_precision(spec, device)
    LOGGER.info(precision.why)
    strategy = build(STRATEGIES, spec.strategy, "strategy", device=device, precision=precision)
    objective = build(OBJECTIVES, spec.objective, "objective")
    if spec.loop.validate_every is not None and spec.data.validation is None:
        raise UserError(
            "loop.validate_every is set, and there is nothing to validate on.",
            "Add data.validation=0.05 (a share of the training rows), or data.validation=FILE.",
        )
    extras: list[Callback] = [build(CALLBACKS, choice, "callback") for choice in spec.callbacks]

    check_model(spec.model, train=True)
    pick(OPTIMISERS, spec.optim.name, "optimiser")
    checkpoint = find_checkpoint(spec.resume, work.folder)
    meta = read_meta(strategy, checkpoint) if checkpoint else None
    seed = spec.seed
    if checkpoint and meta:
        check_spec(spec, meta, checkpoint)
        seed = meta["seed"]
        if seed != spec.seed:
            LOGGER.info("The seed of the checkpoint, %d, is used, not %d.", seed, spec.seed)

    tokenizer = load_tokenizer(
        spec.model.tokenizer or spec.model.path,
        options=spec.model.tokenizer_options,
        trust_remote_code=spec.model.trust_remote_code,
    )
    data = build_dataset(spec.data, tokenizer, seed=seed, tell=LOGGER.info)
    for line in data.report.lines():
        LOGGER.info(line)
    record.template = describe_template(data.template) if data.template else None
    record.data = {"fingerprint": data.fingerprint, "report": data.report.to_dict()}
    if checkpoint and meta:
        check_data(data.fingerprint, meta, checkpoint)
    probe = [Probe(spec.probe, data.template)] if spec.probe and spec.probe.questions else []
    order = Order(
        len(data.train), spec.loop.batch_size, spec.data.shuffle, seed, rank=strategy.rank, world=strategy.world
    )
    num_iters = count_iters(spec, order.iters_per_epoch)
    schedule = build_schedule(spec.schedule, spec.optim.lr, num_iters)

    LOGGER.info("Loading %s", spec.model.path)
    torch.manual_seed(seed)  # a new adapter's weights are random
    model = load_model(spec.model, device=str(device), dtype=precision.weights, train=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        check_vocabulary(model, data.train.highest_id(), spec.model.tokenizer or spec.model.path)
    model = strategy.place(model, lambda placed: build_optimiser(spec.optim, placed))
    work.require_space(checkpoint_bytes(model, spec))
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
        metrics=Metrics(device, spec.loop.log_every, spec.loop.accumulate, check_norm=not precision.scaled),
        work=work,
        record=record,
        callbacks=[DataInfo(), ProgressLog(), Checkpoint(), Validation(), *probe, *extras],
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    LOGGER.info(
        "%d iteration%s (%d per epoch), %d per optimiser step; %s trained weights, %s",
        num_iters,
        "" if num_iters == 1 else "s",
        order.iters_per_epoch,
        spec.loop.accumulate,
        f"{trained:,}",
        spec.optim.name,
    )
    if checkpoint and meta:
        restore(run, checkpoint, meta)
    return run


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
