"""What can be wrong with a checkpoint, said in a sentence: missing, cut short, of an unknown kind, too large."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils.hub import cached_file

from xtuner.errors import ForeignCode, UserError, is_out_of_memory
from xtuner.network import hub_is_reachable


def read_json(path: str, name: str) -> dict[str, Any]:
    """Read a JSON file of a model folder or hub id; an absent one is empty.

    Raises:
        UserError: it is not JSON.
    """
    file: Path | None = Path(path) / name
    if not Path(path).is_dir():
        with explain(path, "model"):
            found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_options(path))
        file = Path(found) if found else None
    if file is None or not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.", "Download or copy the model again.") from error
    return values if isinstance(values, dict) else {}


def hub_options(path: str) -> dict[str, bool]:
    """Return keyword arguments for loading `path`: without a network, only what was downloaded before is looked at.

    The library itself would try again for minutes.
    """
    return {} if Path(path).is_dir() or hub_is_reachable() else {"local_files_only": True}


def generation_ends(path: str) -> GenerationConfig:
    """Return what generation_config.json says about the end of an answer, and nothing else of it.

    How answers are drawn is the user's to say (`Sampling`); published files hold settings of other programs, and some
    that the library refuses together, which is no reason not to load a model.

    Raises:
        UserError: the file is not JSON.
    """
    value = read_json(path, "generation_config.json").get("eos_token_id")
    ids = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
    return GenerationConfig(eos_token_id=ids or None)


def check_vocabulary(model: nn.Module, highest: int, path: str) -> None:
    """Refuse tokens that the model has no embedding for; `highest` is the largest id, `path` names the tokenizer.

    A card answers such an id with an error that says nothing, and takes the process with it.

    Raises:
        UserError: the tokenizer belongs to another model.
    """
    known = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if highest >= known:
        raise UserError(
            f"The tokenizer in {path} gives token {highest}, but the model knows only {known} (0 to {known - 1}).",
            "The two come from different models; download or copy the original tokenizer again.",
        )


def check_rotary(config: PreTrainedConfig, max_length: int, *, packed: bool) -> None:
    """Refuse rows for which the library's rotary positions would depend on more than the sample itself.

    `longrope` takes other frequencies for the whole row when one segment is long; `dynamic` keeps those of the longest
    row it ever saw. `config` is that of the loaded model, `max_length` the longest sample in tokens.

    Raises:
        UserError: samples may be longer than what the model was first trained on, so the case can happen.
    """
    text = config.get_text_config()
    found = getattr(text, "rope_parameters", None) or {}
    kinds = found.values() if all(isinstance(value, dict) for value in found.values()) else [found]
    for rope in kinds:
        kind = rope.get("rope_type")
        first = rope.get("original_max_position_embeddings") or text.max_position_embeddings
        if max_length <= first or kind not in ("dynamic", "longrope") or (kind == "longrope" and not packed):
            continue
        if kind == "longrope":
            raise UserError(
                f"A sample of more than {first} tokens changes the positions of all samples that share its row.",
                f"Set data.max_length={first}, or train one sample a row: data.pack=false loop.batch_size=1",
            )
        raise UserError(
            f"The rotary positions of this model are dynamic: after a sample of more than {first} tokens it would read "
            "the others differently.",
            f"Set data.max_length={first}",
        )


@contextmanager
def explain(path: str, what: str) -> Iterator[None]:
    """Turn what the libraries raise while the `what` of `path` is loaded into one sentence."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise _no_memory(path) from error
    except SafetensorError as error:
        raise UserError(
            f"The weights of {path} cannot be read: {_first_line(error)}.",
            "The files are damaged or cut short; download or copy the model again.",
        ) from error
    except StrictDataclassError as error:
        text = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"The config.json of {path} is wrong: {text[:300]}.", "Download or copy it again.") from error
    except ImportError as error:
        raise UserError(f"The {what} {path} needs a package: {_first_line(error)}.") from error
    except OSError as error:
        if Path(path).is_dir():
            fix = "Files are missing or damaged; download or copy the model again."
            raise UserError(f"The {what} in {path} cannot be loaded: {_first_line(error)}.", fix) from error
        raise not_found(path) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, EOFError) as error:
        raise _explain_other(path, what, error) from error


def not_found(path: str) -> UserError:
    """Return the error for a path without a config: an empty one here, or none on the hub."""
    if Path(path).is_dir():
        return UserError(f"The config.json of {path} is empty.", "Download or copy the model again.")
    return UserError(
        f"{path} is neither a folder here nor a model that can be reached on the hub.",
        "Check the spelling and the network, or download the model and give its folder.",
    )


def _explain_other(path: str, what: str, error: Exception) -> UserError:
    text = str(error)
    if is_out_of_memory(error):
        return _no_memory(path)
    if "does not recognize this architecture" in text or "Unrecognized" in text:
        kind = read_json(path, "config.json").get("model_type") if Path(path).is_dir() else None
        known = (
            f"of the kind {kind}, which is not known" if kind else "of an unknown kind (no model_type in config.json)"
        )
        return UserError(f"{path} is a model {known}.", "Use another model, or a newer transformers.")
    if "does not support an attention implementation" in text:
        return UserError(
            f"The model in {path} does not have the attention that was asked for.",
            "Leave model.attention out, or set model.attention=eager",
        )
    if "trust_remote_code" in text:
        return ForeignCode(
            f"{path} brings its own program code, which is not run unless you ask for it.",
            "If you trust it, add: model.trust_remote_code=true",
        )
    return UserError(
        f"The {what} in {path} cannot be loaded: {_first_line(error)}.", "Check or download its files again."
    )


def _no_memory(path: str) -> UserError:
    return UserError(
        f"There is not enough memory to load {path}.",
        "Use a smaller model, or load it in 4 bits (model.quant), or free memory.",
    )


def _first_line(error: Exception) -> str:
    """Return what a library says, without its advice in the lines after."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:300]
