"""Whatever a user names as a config becomes a `RunSpec`: a file, a built-in name, a run folder; overrides applied."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xtuner.catalog.names import names
from xtuner.config.check import to_spec
from xtuner.config.dump import dump_python, dump_yaml
from xtuner.config.override import parse_override
from xtuner.config.reader import KINDS, RUN_RECORD, Config, Kind, load_text, read_text
from xtuner.config.spec import RunSpec
from xtuner.config.spec_override import override_spec
from xtuner.errors import UserError, did_you_mean
from xtuner.legacy.run import to_run_spec
from xtuner.log import LOGGER


@dataclass(frozen=True)
class LoadedRun:
    """A run to be. `name` names its work dir; `dump_name` and `dump_text` are the config copy that belongs there."""

    spec: RunSpec
    name: str
    dump_name: str
    dump_text: str


def load_run(word: str, *, overrides: Sequence[str] = (), cfg_options: Sequence[str] = ()) -> LoadedRun:
    """Load a config by path, built-in name or run folder.

    `cfg_options` are 0.1.x settings (`max_length=512`, `model.lora.r=8`), `overrides` settings of the `RunSpec`
    (`lr=1e-4`); for a config that is a `RunSpec` both are the latter.

    Raises:
        UserError: not found (with the nearest names), or anything in it that cannot be understood.
    """
    text, path, kind = find_config(word)
    name = path.parent.resolve().name if path.name == RUN_RECORD else path.stem
    if kind == "python":
        config = read_text(text, path, kind, dict(map(parse_override, cfg_options)))
        spec = to_run_spec(config)
        warn_of_idle(config, text, spec, cfg_options)
        if overrides:
            # settings of the spec cannot be said in the old language, so the copy is in the new one
            spec = override_spec(spec, overrides)
            return LoadedRun(spec, name, f"{name}.yaml", dump_yaml(spec))
        return LoadedRun(spec, name, f"{name}.py", dump_python(config.values))
    spec = override_spec(to_spec(read_text(text, path, kind).values), [*cfg_options, *overrides])
    if path.name == RUN_RECORD and spec.work_dir is None:
        spec = spec.model_copy(update={"work_dir": str(path.parent)})
    return LoadedRun(spec, name, f"{name}.yaml", dump_yaml(spec))


def find_config(word: str) -> tuple[str, Path, Kind]:
    """Return text, path and kind of what is named; a file wins over a built-in name.

    Slashes and colons that `ls` leaves at the end of a path are taken off.

    Raises:
        UserError: neither a file nor a name; names the nearest.
    """
    word = word.strip().rstrip("/:") or word
    path = Path(word).expanduser()
    if path.is_dir():
        if not (path / RUN_RECORD).is_file():
            is_model = (path / "config.json").is_file()
            fix = f"Type: xtuner train --model {path} --data FILE" if is_model else "Give a config file."
            raise UserError(f"{path} is not the folder of a run: it has no {RUN_RECORD}.", fix)
        path = path / RUN_RECORD
    if path.is_file():
        if path.suffix not in KINDS:
            raise UserError(f"{path} is not a config.", "A config is a .py, .yaml or .json file, or a run folder.")
        return load_text(path), path, KINDS[path.suffix]
    if word in names():
        from xtuner.catalog.render import render  # time that a config of one's own need not take

        return render(word), Path(f"{word}.py"), "python"
    beside = [str(path.with_suffix(suffix)) for suffix in (".py", ".yaml") if path.with_suffix(suffix).is_file()]
    hint = f"Did you mean {beside[0]}?" if beside else did_you_mean(path.stem, names())
    what = f"Cannot find {word}: there is no such file, and no built-in config of that name."
    raise UserError(what, hint or "Type: xtuner list-cfg")


def render_yaml(name: str) -> str:
    """Render a built-in config in the short form.

    Raises:
        UserError: there is no config of that name.
    """
    return dump_yaml(load_run(name).spec)


def warn_of_idle(config: Config, text: str, spec: RunSpec, cfg_options: Sequence[str]) -> None:
    """Say which `--cfg-options` change nothing in this run."""
    for word in cfg_options:
        others = dict(parse_override(other) for other in cfg_options if other != word)
        try:
            without = to_run_spec(read_text(text, config.file, config.kind, others), tell=lambda sentence: None)
        except UserError:
            continue  # without it the config would not even be whole
        if without == spec:
            LOGGER.warning("%s changes nothing in this run.", word)
