"""An adapter and its base become one model, shard by shard, and the result is checked before it counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xtuner.checkpoint.adapter import read_adapter, read_base_changes
from xtuner.checkpoint.folder import fresh_folder, require_space
from xtuner.checkpoint.hub import find_folder
from xtuner.checkpoint.model_folder import is_adapter
from xtuner.checkpoint.run_record import describe_base, is_run_folder, nothing_saved, read_run
from xtuner.checkpoint.shards import ShardReader, ShardWriter, read_size
from xtuner.checkpoint.state import find_last
from xtuner.config.spec import RunSpec
from xtuner.conversation.builtin import to_template
from xtuner.conversation.detect import detect_template
from xtuner.errors import UserError
from xtuner.export.companion import Speech, read_config_json, vocabulary_key, write_companions
from xtuner.export.fold import Fold, embedding_name, head_name
from xtuner.export.full import words_of, write_full
from xtuner.export.streamed import Unnamed
from xtuner.export.target import refuse_folder
from xtuner.export.to_hf import to_adapter
from xtuner.export.trained import read_trained
from xtuner.export.verify import compare, find_wrong_weight
from xtuner.log import LOGGER
from xtuner.model.foreign_code import announce_code
from xtuner.model.load import load_tokenizer
from xtuner.model.position import position_changes

Tell = Callable[[str], None]


@dataclass(frozen=True)
class How:
    """The part of a merge that is the same whatever is merged."""

    max_bytes: int
    """Of a shard."""
    device: str
    safe: bool
    """safetensors, not .bin."""
    trust_remote_code: bool
    tell: Tell


def merge(
    model: Path | str,
    adapter: Path | str,
    save_dir: Path,
    *,
    max_shard_size: str = "2GB",
    device: str = "auto",
    safe: bool = True,
    template: str | None = None,
    trust_remote_code: bool = False,
    tell: Tell = LOGGER.info,
) -> None:
    """Merge a PEFT folder into its base model and write the result, in the dtype of the base, into `save_dir`.

    Memory: about one shard and one matrix in fp32. At the end the logits of the result are compared with those of
    the base with the adapter beside it. `template`: name of the chat template to write down; without it the one
    that the adapter was trained with, or the one the base is recognised by, or what the base has.

    Raises:
        UserError: a folder is missing or damaged; the adapter does not fit the base or cannot be merged; the disk is
            full; the result does not say what base and adapter say. `save_dir` is left as it was.
    """
    limit, place = read_size(max_shard_size), pick_device(device)
    adapter = Path(adapter)
    base = find_folder(model, weights=True)
    if is_adapter(base):
        raise UserError(f"{base} is an adapter, not a model.", "Type the base model first, then the adapter.")
    config, tensors = read_adapter(adapter)
    named = template or _run_template(adapter) or detect_template(adapter) or detect_template(base)
    folder = adapter if (adapter / "tokenizer_config.json").is_file() else base
    if trust_remote_code:
        announce_code(str(base), tell)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    words = Speech(tokenizer, folder, to_template(named) if named else None)
    refuse_folder(save_dir, base, adapter)
    how = How(limit, place, safe, trust_remote_code, tell)
    _merge(base, config, tensors, save_dir, words, how, read_base_changes(adapter))


def merge_run(
    run: Path,
    save_dir: Path,
    *,
    max_shard_size: str = "2GB",
    device: str = "auto",
    safe: bool = True,
    template: str | None = None,
    trust_remote_code: bool = False,
    tell: Tell = LOGGER.info,
) -> None:
    """Make one model of a run folder: its base with its adapter merged in, or its fully trained weights.

    `template`: as for `merge`; without it the one that was trained.

    Raises:
        UserError: as `merge`; also a run that saved nothing.
    """
    limit, place = read_size(max_shard_size), pick_device(device)
    record = read_run(run)
    spec = RunSpec.model_validate(record.spec)
    spec.model.path = str(record.base.get("path") or spec.model.path)
    _check_base(spec.model.path, record.base.get("config_hash"), run, save_dir, tell)
    recorded = template or record.template
    named = to_template(recorded) if recorded else None
    if spec.model.lora is not None and record.adapter and is_adapter(run / record.adapter):
        config, tensors = read_adapter(run / record.adapter)
    else:
        last = find_last(run)
        if last is None:
            raise nothing_saved(run)
        tell(f"Weights: {last}")
        state = read_trained(last)
        if spec.model.lora is None:
            write_full(
                spec,
                state,
                save_dir,
                dtype=None,
                max_bytes=limit,
                safe=safe,
                template=named,
                trust_remote_code=trust_remote_code,
                tell=tell,
            )
            return
        config, tensors = to_adapter(spec.model.lora, spec.model.path, state)
    base = find_folder(spec.model.path, weights=True)
    refuse_folder(save_dir, base, run)
    if spec.model.quant is not None:
        tell(
            f"The adapter was trained over {spec.model.quant.bits}-bit weights and is merged into the full ones, "
            "so the answers may differ a little from those during training."
        )
    words = words_of(spec, base, named, trust_remote_code=trust_remote_code, tell=tell)
    how = How(limit, place, safe, trust_remote_code, tell)
    _merge(base, config, tensors, save_dir, words, how, position_changes(spec.model, read_config_json(base)))


def pick_device(device: str) -> str:
    """Return the torch device for a word; `auto` is the GPU if there is one.

    Raises:
        UserError: cuda without a GPU, or an unknown word.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"There is no device {device}.", "Known: auto, cpu, cuda.", exit_code=2)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no GPU here.", "Leave --device out, or type --device cpu.")
    return device


def _merge(
    base: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    save_dir: Path,
    words: Speech,
    how: How,
    positions: Mapping[str, Any],
) -> None:
    tell = how.tell
    reader, fold = ShardReader(base), Fold(config, tensors)
    fold.check(reader)
    model_config = read_config_json(base)
    if model_config.get("quantization_config"):
        raise UserError(
            f"The weights of {base} are quantised, which an adapter cannot be merged into.",
            "Give the 16-bit version of the base model.",
        )
    changes = _changes(reader, fold, model_config)
    require_space(save_dir, reader.num_bytes())
    tell(f"The adapter changes {len(fold.names())} of {len(reader.names())} weights.")
    tell(f"Saving to {save_dir}...")
    with fresh_folder(save_dir) as aside:
        with ShardWriter(aside, how.max_bytes, how.safe) as writer:
            for name in reader.names():
                writer.add(name, fold.apply(name, reader.get(name).to(how.device)))
            head = head_name(reader)
            if changes.get("tie_word_embeddings") is False and head not in reader:
                writer.add(head, fold.apply(head, reader.get(embedding_name(reader)).to(how.device)))
        write_companions(base, aside, words, changes={**changes, **positions}, tell=tell)
        _check(base, fold, aside, words, how, positions)


def _changes(reader: ShardReader, fold: Fold, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json must say differently: an adapter may part a head from its embedding, or add rows to both."""
    changes: dict[str, Any] = {}
    head, names = head_name(reader), fold.names()
    tied = head not in reader or config.get("tie_word_embeddings") is True
    touched = {head} | ({embedding_name(reader)} if tied else set())
    if tied and names & touched:
        changes["tie_word_embeddings"] = False
    num_rows = fold.num_rows(head)
    key = vocabulary_key(config)
    if num_rows is not None and num_rows != config.get(key, num_rows):
        changes[key] = num_rows
    return changes


def _check(base: Path, fold: Fold, merged: Path, words: Speech, how: How, positions: Mapping[str, Any]) -> None:
    tell = how.tell
    wrong = find_wrong_weight(ShardReader(base), fold, ShardReader(merged), how.device)
    if wrong is not None:
        raise _wrong(f"{wrong} is not the base with the adapter in it")
    try:
        found = compare(
            base,
            fold,
            merged,
            words.tokenizer,
            words.template,
            device=how.device,
            changes=positions,
            trust_remote_code=how.trust_remote_code,
        )
    except Unnamed as error:
        tell(f"Not checked: in memory this architecture names its weights differently ({error}).")
        return
    tell(
        f"Checked against base + adapter: logits differ by at most {found.largest:.2g}, "
        f"typically {found.typical:.1g} (they vary by {found.spread:.2g})."
    )
    if not found.agrees:
        raise _wrong(f"logits differ by {found.typical:.2g} typically, {found.limit:.2g} is what rounding explains")


def _wrong(what: str) -> UserError:
    return UserError(
        f"The merged model does not say what base and adapter say: {what}. Nothing was saved.",
        "Please report this with the adapter_config.json; PEFT's merge_and_unload is another way.",
    )


def _check_base(path: str, config_hash: str | None, run: Path, save_dir: Path, tell: Tell) -> None:
    """Say what happened to the base of a run since it was trained."""
    if Path(path).is_absolute() and not Path(path).exists():
        raise UserError(
            f"The base model of this run is not in {path} any more.",
            f"Type: xtuner convert merge WHERE_IT_IS {run / 'adapter'} {save_dir}",
        )
    if config_hash not in (None, describe_base(path)["config_hash"]):
        tell(f"Careful: config.json in {path} is not the one that this run was trained on.")


def _run_template(adapter: Path) -> str | dict[str, Any] | None:
    """The template recorded by the run whose adapter this is."""
    run = adapter.absolute().parent
    return read_run(run).template if is_run_folder(run) else None
