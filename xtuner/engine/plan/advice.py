"""What would make a run fit: settings to type, and how many cards (no torch)."""

from dataclasses import replace

from xtuner.config.spec import RunSpec
from xtuner.config.spec_override import override_spec
from xtuner.engine.plan.card import Card
from xtuner.engine.plan.check import check_plan
from xtuner.engine.plan.choose import fits, weigh_chosen
from xtuner.engine.plan.formats import choose_formats
from xtuner.engine.plan.memory import Memory
from xtuner.engine.plan.shape import Shape
from xtuner.engine.plan.trained import is_trained_whole
from xtuner.engine.plan.work import Work, row_of
from xtuner.errors import UserError

SMALL_RANK = 16
"""What a larger rank of an adapter may be reduced to."""
OF_LEARNING = ("data.max_length", "model.lora")
"""Settings that begin so change what is learned."""
SHORTEST = 256
"""Tokens; advice goes no further down."""
ADAPTER = ["model.lora.r=64", "model.quant.bits=4"]
"""What all weights need not be trained for."""
MORE_CARDS = (2, 4, 8)
"""Numbers of cards that machines have."""


def list_changes(
    spec: RunSpec, *, is_cpu: bool, tied: bool = True, cards: int = 1, float16: bool = False
) -> list[list[str]]:
    """Return settings that save memory, from those that cost nothing to those that change what is learned; `tied`: the
    output head is the embedding; `cards` share the run; `float16` is computed in."""
    changes: list[list[str]] = []
    loop, model, optim = spec.loop, spec.model, spec.optim
    if loop.batch_size > 1:
        changes.append(["loop.batch_size=1", f"loop.accumulate={loop.accumulate * loop.batch_size}"])
    if model.recompute == "none" or isinstance(model.recompute, int):
        changes.append(["model.recompute=layers"])
    if model.recompute in ("mlp", "layers") and not is_cpu:  # what they keep may wait on the host
        changes.append(["model.recompute=offload" if model.recompute == "mlp" else "model.recompute=offload_layers"])
    if cards > 1 and spec.strategy.name in ("auto", "ddp"):
        changes.append(["strategy.name=fsdp" if spec.strategy.options else "strategy=fsdp"])
    if spec.strategy.name in ("fsdp", "deepspeed"):
        pass  # they divide moments among cards, and know torch's optimisers alone
    elif is_trained_whole(spec) and not is_cpu:  # bytes of weight, gradient and moments: 16, then 8, then 6
        stored = ["optim.name=adamw_bf16", *(["model.dtype=bfloat16"] if not float16 else [])]
        at_once = ["optim.in_backward=true"]
        at_once += ["optim.max_norm=none"] if optim.max_norm is not None else []
        alone = cards == 1 and spec.strategy.name in ("auto", "single") and loop.batch_size == loop.accumulate == 1
        least = optim.name == "adamw_bf16" and (float16 or model.dtype == "bfloat16")
        less = optim.name != "sgd" and not least
        soon = alone and not loop.skip_spikes and not optim.in_backward
        changes += [stored] * less + [at_once] * soon + [[*stored, *at_once]] * (less and soon)
    elif "8bit" not in optim.name and optim.name != "sgd":
        changes.append(["optim.name=paged_adamw_8bit"])
    if model.lora is not None and model.quant is None:
        changes.append(["model.quant.bits=4"])
    elif model.quant is not None and model.quant.bits == 8:
        changes.append(["model.quant.bits=4", *(["model.quant.type=nf4"] if model.quant.type == "fp8" else [])])
    if not tied and not is_cpu:
        changes += _move_ends(spec)
    if model.lora is not None and model.lora.r > SMALL_RANK:  # alpha along with it, so that the adapter weighs the same
        changes.append(
            [f"model.lora.r={SMALL_RANK}", f"model.lora.alpha={model.lora.alpha * SMALL_RANK / model.lora.r:g}"]
        )
    length = spec.data.max_length // 2
    while length >= SHORTEST:
        words = [f"data.max_length={length}"]
        changes.append([*words, f"data.pack_length={length}"] if spec.data.pack_length else words)
        length //= 2
    if is_trained_whole(spec):
        changes += [["model.lora.r=64"], ADAPTER]
    return changes


def _move_ends(spec: RunSpec) -> list[list[str]]:
    """Return the settings that take the embedding off the card, and the head to 4 bits, where neither is trained."""
    model, quant = spec.model, spec.model.quant
    if model.lora is None or model.lora.modules_to_save or model.resize_vocab:
        return []
    changes: list[list[str]] = []
    if not model.host_embedding and spec.strategy.name not in ("fsdp", "deepspeed"):
        changes.append(["model.host_embedding=true"])
    if quant is None or (quant.bits == 4 and not quant.head):
        changes.append(["model.quant.head=true"])
    if quant is not None and quant.bits == 4 and not quant.double:
        changes.append(["model.quant.double=true"])
    return changes


def find_change(spec: RunSpec, shape: Shape, card: Card, work: Work) -> tuple[list[str], Memory] | None:
    """Return the settings that make a run fit on `card`, and what it then needs. None: nothing does.

    One setting if it suffices, else several; none that changes what is learned where others suffice, and none that is
    not needed.
    """
    float16 = choose_formats(spec, is_cpu=card.is_cpu, has_bfloat16=card.has_bfloat16).compute == "float16"
    changes = list_changes(spec, is_cpu=card.is_cpu, tied=shape.tied, cards=card.count, float16=float16)
    free = [words for words in changes if not words[0].startswith(OF_LEARNING)]
    costly = [words for words in changes if words[0].startswith(OF_LEARNING)]

    def fitting(groups: list[list[str]]) -> Memory | None:
        changed = change(spec, shape, card, _merge(groups))
        if changed is None:
            return None
        memory = weigh_chosen(changed, shape, card, work_of(changed, work))
        return memory if fits(memory, card) else None

    def together(groups: list[list[str]]) -> list[list[str]]:
        """Those of them that go with the ones before."""
        found: list[list[str]] = []
        for words in groups:
            found += [words] if change(spec, shape, card, _merge([*found, words])) else []
        return found

    tries = [[words] for words in free]
    for order in (free, [words for words in free if not words[0].startswith("strategy")]):
        able = together(order)
        tries += [able[:count] for count in range(2, len(able) + 1)]
        tries += [[words] for words in costly if not free]
        tries += [[*able, *costly[:count]] for count in range(1, len(costly) + 1)]
    found = next((groups for groups in tries if fitting(groups)), None)
    if found is None:
        return _find_with_adapter(spec, shape, card, work)
    for words in reversed(found[:-1]):  # those that cost most are left out first
        fewer = [group for group in found if group is not words]
        found = fewer if fitting(fewer) else found
    memory = fitting(found)
    assert memory is not None
    return _merge(found), memory


def _find_with_adapter(spec: RunSpec, shape: Shape, card: Card, work: Work) -> tuple[list[str], Memory] | None:
    """The same for a run that trains all weights, after it has become an adapter over weights in 4 bits."""
    changed = change(spec, shape, card, ADAPTER) if is_trained_whole(spec) else None
    found = find_change(changed, shape, card, work_of(changed, work)) if changed is not None else None
    return (_merge([ADAPTER, found[0]]), found[1]) if found is not None else None


def find_more_cards(spec: RunSpec, shape: Shape, card: Card, work: Work) -> tuple[int, list[str], Memory] | None:
    """Return how many such cards hold a run together, with which settings, and what each then needs."""
    if card.is_cpu or card.count > 1:
        return None
    for count in MORE_CARDS:
        found = find_change(spec, shape, replace(card, count=count), work)
        if found is not None:
            return count, *found
    return None


def change(spec: RunSpec, shape: Shape, card: Card, words: list[str]) -> RunSpec | None:
    """Return the spec with the settings `words`; None: they do not go together."""
    try:
        changed = override_spec(spec, words)
        check_plan(changed, shape, card)
    except UserError:
        return None
    return changed


def _merge(groups: list[list[str]]) -> list[str]:
    """Put settings together; of one key the last counts."""
    values = {word.partition("=")[0]: word for words in groups for word in words}
    return list(values.values())


def work_of(spec: RunSpec, work: Work) -> Work:
    """Return the work of a changed spec, no larger than `work`, which may know the data."""
    tokens, segment = row_of(spec)
    return replace(work, tokens=min(tokens, work.tokens), segment=min(segment, work.segment))
