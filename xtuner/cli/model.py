"""Says what a model is: family, size, template, what an adapter would change. Loads no weights."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from xtuner.errors import UserError

if TYPE_CHECKING:
    from xtuner.checkpoint.run_record import RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the one thing there is to do, and its path."""
    modes = parser.add_subparsers(dest="mode", metavar="show", required=True)
    show = modes.add_parser("show", help="say what a model is", allow_abbrev=False)
    show.add_argument("path", metavar="PATH", help="a model folder, a hub id, an adapter folder or a run folder")


def run(args: argparse.Namespace) -> int:
    """Print titles and texts, one a line."""
    found = describe(args.path.rstrip("/:") or args.path)
    width = max(map(len, found))
    for title, text in found.items():
        print(f"{title:<{width}}  {text}")
    return 0


def describe(path: str) -> dict[str, str]:
    """Return what is at `path`, title -> text; behind a run or an adapter also the model it belongs to.

    Raises:
        UserError: nothing there, or it is damaged.
    """
    from xtuner.checkpoint.model_folder import is_adapter, read_adapter_config
    from xtuner.checkpoint.run_record import is_run_folder, read_run

    folder = Path(path).expanduser()
    if is_run_folder(folder):
        record = read_run(folder)
        spec = record.spec.get("model", {})
        base = str(record.base.get("path") or spec.get("path"))
        found = {"run": f"{folder} ({record.status})", "trained": _trained(spec)}
        return found | _base(base, record)
    if is_adapter(folder) and not (folder / "config.json").is_file():
        config = read_adapter_config(folder)
        targets = config.get("target_modules")
        places = ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)
        words = f"{folder} (LoRA, rank {config.get('r')}, alpha {config.get('lora_alpha')}, on {places})"
        return {"adapter": words} | _base(str(config.get("base_model_name_or_path") or ""), None)
    return describe_folder(path)


def describe_folder(path: str, *, template: str | None = None) -> dict[str, str]:
    """Return what the model at `path` (folder or hub id) is; `template` is the one that was trained, if known.

    Raises:
        UserError: no model there.
    """
    from xtuner.checkpoint.describe import describe_model
    from xtuner.checkpoint.hub import find_folder
    from xtuner.checkpoint.model_folder import check_folder

    check_folder(path, ("config.json",))
    folder = find_folder(Path(path).expanduser() if Path(path).expanduser().is_dir() else path, weights=False)
    facts = describe_model(folder)
    found = {"model": path}
    for title, text in facts.items():
        found[title] = text
        if title == "tokenizer":
            found["template"] = template or _template(folder)
    code = _foreign_code(folder)
    return found | ({"program code": code} if code else {})


def _base(path: str, record: "RunRecord | None") -> dict[str, str]:
    """Describe the model that an adapter or a run stands on, if it is on this machine."""
    if not path:
        return {"model": "the adapter does not say for which model it is"}
    if not Path(path).is_dir() and Path(path).is_absolute():
        return {"model": f"{path} (not there any more)"}
    trained = record.template if record else None
    name = trained.get("name", "one of its own") if isinstance(trained, dict) else trained
    try:
        return describe_folder(path, template=f"{name} (trained)" if name else None)
    except UserError as error:
        return {"model": f"{path} ({error.what})"}


def _trained(spec: dict[str, object]) -> str:
    lora, quant = spec.get("lora"), spec.get("quant")
    if not isinstance(lora, dict):
        return "all weights"
    bits = f" over {quant['bits']}-bit weights" if isinstance(quant, dict) else ""
    return f"an adapter (LoRA, rank {lora.get('r')}, alpha {lora.get('alpha')}){bits}"


def _template(folder: Path) -> str:
    """Say which chat template training and chat would take."""
    from xtuner.checkpoint.describe import read_json_file
    from xtuner.conversation.detect import detect_template, usual_template

    found = detect_template(folder)
    if found:
        return found
    settings = read_json_file(folder / "tokenizer_config.json")
    if settings.get("chat_template") or (folder / "chat_template.jinja").is_file():
        return "the tokenizer's own chat template"
    usual = usual_template(folder)
    if usual:
        return f"none of its own, as a base model; training takes {usual}, as the chat models of its kind do"
    return "none known: a base model, or name one (--template, --prompt-template)"


def _foreign_code(folder: Path) -> str:
    """Say which program code comes with a checkpoint, and whether it would ever run."""
    from xtuner.checkpoint.describe import foreign_code, read_json_file
    from xtuner.checkpoint.kind import KINDS

    config = read_json_file(folder / "config.json")
    code = foreign_code([config, read_json_file(folder / "tokenizer_config.json")])
    if not code:
        return ""
    if config.get("model_type") in KINDS:
        return f"comes with it and never runs: {', '.join(code)}"
    return f"runs only if the kind is not known here and you trust it: {', '.join(code)}"
