"""`RunSpec` from YAML and run records: mistakes are named with key, file and line; what is written reads back."""

import json
from pathlib import Path

import pytest

from xtuner.config.check import to_spec
from xtuner.config.dump import dump_yaml
from xtuner.config.reader import read_config, read_text
from xtuner.config.schema import json_schema, setting_keys
from xtuner.config.spec import DATA_SUFFIXES, RunSpec
from xtuner.config.spec_override import full_key, override_spec
from xtuner.dataset.reader import SUFFIXES
from xtuner.errors import UserError

NORMAL = """\
model:
  path: ./internlm2-chat-1_8b
  quant: {bits: 4}
  lora: {r: 32}
data:
  train: data.json
  template: internlm2_chat
  max_length: 512
optim: {lr: 1e-4}
loop: {epochs: 3, accumulate: 4}
probe:
  questions: [你好, "Who are you?"]
"""


def load(text: str) -> RunSpec:
    return to_spec(read_text(text, Path("run.yaml"), "yaml").values)


def test_a_normal_run_is_short_and_reads_back() -> None:
    spec = load(NORMAL)
    assert spec.optim.lr == 1e-4
    text = dump_yaml(spec)
    assert len(text.splitlines()) <= 15
    assert load(text) == spec


def test_options_of_a_free_form_read_back() -> None:
    """A whole DeepSpeed config may stand where a strategy's options are."""
    zero = "{zero_optimization: {stage: 2, sub_group: [1, {a: b}]}}"
    spec = load(f"{NORMAL}strategy: {{name: deepspeed, options: {{config: {zero}}}}}\n")
    assert spec.strategy.options["config"]["zero_optimization"]["stage"] == 2
    assert load(dump_yaml(spec)) == spec


@pytest.mark.parametrize(
    "words",
    [
        ["objective=dpo", "objective.beta=0.2"],
        ["data.train=[a.json,b.json]"],
        ["data.validation=0.1", "max_norm=none", "seed=7"],
        ["system='line\n2'"],
        ["model.tokenizer_options.eos_token=</s>", "work_dir=2024"],
        ["questions=['1e-4', 'yes', 'null', '2020-01-01', ' padded ', '']"],
        ["quant=none", "lora=none", "betas=0.9,0.95"],
        ["system=Be,brief", "questions=Who are you?", "probe.stop_words=</s>"],
    ],
)
def test_whatever_is_set_reads_back(words: list[str]) -> None:
    spec = override_spec(load(NORMAL), words)
    assert spec != load(NORMAL)
    assert load(dump_yaml(spec)) == spec


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("r: 32", "rr: 32", "run.yaml:4: there is no setting model.lora.rr. Did you mean r?"),
        ("optim:", "optimm:", "run.yaml:9: there is no setting optimm. Did you mean optim?"),
        ("512", "-1", "run.yaml:8: data.max_length is -1; it should be greater than 0"),
        ("1e-4", "fast", "run.yaml:9: optim.lr is 'fast'; it should be a valid number"),
        ("bits: 4", "bits: 3", "run.yaml:3: model.quant.bits is 3"),
        (
            "{epochs: 3, accumulate: 4}",
            "3",
            "run.yaml:10: loop is 3; it is a group of settings. Put settings",
        ),
        ("train: data.json", "train: 5", "run.yaml:6: data.train is 5; it should be a list"),
        ("  path: ./internlm2-chat-1_8b\n", "", "run.yaml:2: the setting model.path is missing"),
        ("train: data.json", "train: []", "run.yaml:6: data.train is []"),
        ("train: data.json", "train: {path: a, formt: b}", "run.yaml:6: there is no setting data.train.formt"),
        (
            "train: data.json",
            "train: a\n  validation: {path: a, x: 1}",
            "run.yaml:7: there is no setting data.validation.x",
        ),
        ("epochs: 3", "epochs: 3, epochs: 4", "run.yaml:10: epochs is given twice"),
        ("{r: 32}", "{r: 32", "this is not YAML"),
        ("./internlm2-chat-1_8b", "!!python/object:os.system x", "run.yaml:2: "),
        ("./internlm2-chat-1_8b", "!Thing x", "the tag !Thing is not allowed"),
    ],
)
def test_a_mistake_is_one_sentence_with_key_file_and_line(old: str, new: str, said: str) -> None:
    assert old in NORMAL
    with pytest.raises(UserError) as caught:
        load(NORMAL.replace(old, new))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


WORDS = """\
a: 1e-4
b: no
c: 2024-01-01
d: 1_000
e: true
f:
g: '1'
h: &x {k: 1, l: 1}
i: {k: 2, <<: *x}
j: {<<: *x, k: 2}
"""


def test_yaml_words_mean_what_people_mean() -> None:
    values = read_text(WORDS, Path("x.yaml"), "yaml").values
    assert dict(values) == {
        "a": 1e-4,
        "b": "no",
        "c": "2024-01-01",
        "d": 1000,
        "e": True,
        "f": None,
        "g": "1",
        "h": {"k": 1, "l": 1},
        "i": {"k": 2, "l": 1},
        "j": {"k": 2, "l": 1},
    }
    with pytest.raises(UserError, match="contains itself"):
        read_text("a: &x [*x]", Path("x.yaml"), "yaml")
    with pytest.raises(UserError, match="not"):
        read_text("- a\n- b", Path("x.yaml"), "yaml")


def test_a_run_record_is_a_config(tmp_path: Path) -> None:
    spec = load(NORMAL)
    (tmp_path / "run.json").write_text(json.dumps({"spec": spec.model_dump(mode="json"), "status": "finished"}))
    assert to_spec(read_config(tmp_path).values) == spec
    assert to_spec(read_config(tmp_path / "run.json", {"optim.lr": 0.5}).values).optim.lr == 0.5


@pytest.mark.parametrize(
    ("key", "full"),
    [
        ("lr", "optim.lr"),
        ("max_length", "data.max_length"),
        ("epochs", "loop.epochs"),
        ("batch_size", "loop.batch_size"),
        ("r", "model.lora.r"),
        ("bits", "model.quant.bits"),
        ("quant.bits", "model.quant.bits"),
        ("checkpoint.every", "checkpoint.every"),
        ("data.train.0.limit", "data.train.0.limit"),
        ("objective.beta", "objective.options.beta"),
        ("objective.name", "objective.name"),
        ("model.tokenizer_options.eos_token", "model.tokenizer_options.eos_token"),
        ("lora", "model.lora"),
    ],
)
def test_keys_are_completed(key: str, full: str) -> None:
    assert full_key(key) == full


def test_every_full_key_is_understood_and_short_ones_are_never_wrong() -> None:
    keys = setting_keys()
    assert {"model.path", "optim.betas", "probe.questions"} <= set(keys)
    for key in keys:
        assert full_key(key) == key
        last = key.rsplit(".", 1)[-1]
        same = [other for other in keys if other == last or other.endswith(f".{last}")]
        if len(same) == 1:
            assert full_key(last) == key


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("every=3", "every could be checkpoint.every or probe.every"),
        ("lrr=3", "There is no setting lrr. Did you mean lr?"),
        ("max_lenght=3", "Did you mean max_length"),
        ("novalue", "novalue is not a setting"),
        ("data.train.0.limt=1", "There is no setting data.train.0.limt"),
        ("questions=[1", "does not close"),
    ],
)
def test_words_that_are_no_settings_are_refused(word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        override_spec(load(NORMAL), [word])
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_setting_turns_its_part_on() -> None:
    spec = to_spec({"model": {"path": "m"}, "data": {"train": "a.json"}})
    assert spec.model.lora is None
    spec = override_spec(spec, ["r=8", "bits=8", "probe.every=5"])
    assert spec.model.lora is not None
    assert spec.model.lora.r == 8
    assert spec.model.quant is not None
    assert spec.model.quant.bits == 8
    assert spec.probe is not None
    assert spec.probe.every == 5
    with pytest.raises(UserError, match=r"the command line: loop\.batch_size is 0"):
        override_spec(spec, ["batch_size=0"])
    assert override_spec(spec, ["model.path=007"]).model.path == "007", "a text stays the text that was typed"


def test_the_schema_names_every_setting() -> None:
    assert {"model", "data", "optim", "probe"} <= json_schema()["properties"].keys()


def test_a_value_is_read_as_its_setting_takes_it() -> None:
    words = ["adapter=x,y", "system=Be,brief", "modules_to_save=lm_head", "model.lora.targets=wqkv,wo"]
    spec = override_spec(load(NORMAL), [*words, "questions=Who are you?", "callbacks=throughput", "stop_words=7"])
    assert spec.model.lora is not None
    assert spec.probe is not None
    assert (spec.model.adapter, spec.probe.system) == ("x,y", "Be,brief"), "a text may hold commas"
    assert (spec.model.lora.modules_to_save, spec.model.lora.targets) == (["lm_head"], ["wqkv", "wo"])
    assert (spec.probe.questions, spec.probe.stop_words) == (["Who are you?"], ["7"]), "one value, a list of one"
    assert [choice.name for choice in spec.callbacks] == ["throughput"]
    again = override_spec(spec, ["adapter=none", "model.lora.targets=wqkv", "system='[x'", "questions=a,b"])
    assert again.model.lora is not None
    assert again.probe is not None
    assert (again.model.adapter, again.model.lora.targets) == (None, "wqkv")
    assert (again.probe.system, again.probe.questions) == ("[x", ["a", "b"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("train: data.json", "train: {path: data.json, split: test}", "run.yaml:6: data.train.split has no effect"),
        ("train: data.json", "train: {path: data.json, name: en}", "data.train.name has no effect"),
        ("train: data.json", "train: [{path: a.CSV, files: b.csv}]", "data.train.0.files has no effect"),
        ("lr: 1e-4", "name: sgd, eps: 1e-6", "run.yaml:9: optim.eps has no effect with sgd. Leave eps at its default."),
        ("lr: 1e-4", "name: sgd, betas: [0.9, 0.95]", "optim.betas has no effect beyond its first number"),
        ("optim: {lr: 1e-4}", "schedule: {name: constant, min_lr: 1e-6}", "schedule.min_lr has no effect with con"),
        ("optim: {lr: 1e-4}", "schedule: {warmup: 0, warmup_start: 0.1}", "warmup_start has no effect without a warm"),
        ("{bits: 4}", "{bits: 8, type: fp4}", "run.yaml:3: model.quant.type has no effect at 8 bits"),
        ("{bits: 4}", "{bits: 8, double: false}", "model.quant.double has no effect at 8 bits"),
        ("{bits: 4}", "{bits: 8, compute_dtype: float32}", "model.quant.compute_dtype has no effect at 8 bits"),
        ("{bits: 4}", "{int8_threshold: 5}", "model.quant.int8_threshold has no effect at 4 bits"),
    ],
)
def test_a_setting_without_effect_is_refused(old: str, new: str, said: str) -> None:
    assert old in NORMAL
    with pytest.raises(UserError) as caught:
        load(NORMAL.replace(old, new))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{bits: 4}", "{bits: 4, int8_threshold: 6.0}"),
        ("{bits: 4}", "{bits: 8, type: nf4, double: true, int8_threshold: 5}"),
        ("train: data.json", "train: {path: data.json, split: null}"),
        ("train: data.json", "train: {path: hub/id, split: test, name: en}"),
        ("lr: 1e-4", "name: sgd, betas: [0.5, 0.999]"),
        ("optim: {lr: 1e-4}", "schedule: {name: constant, warmup: 0, warmup_start: 1e-5, min_lr: 0}"),
    ],
)
def test_defaults_and_what_has_an_effect_are_no_mistake(old: str, new: str) -> None:
    spec = load(NORMAL.replace(old, new))
    assert to_spec(spec.model_dump(mode="json")) == spec, "a run record says every default"


def test_the_suffixes_of_data_files_are_those_that_are_read() -> None:
    assert tuple(SUFFIXES) == DATA_SUFFIXES


def test_aliases_cannot_fill_the_memory() -> None:
    rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    with pytest.raises(UserError, match=r"x\.yaml:6: this is more than 100000 values\. Use fewer aliases"):
        read_text("\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *rows]), Path("x.yaml"), "yaml")


@pytest.mark.parametrize("setting", ["seed=-1", "max_norm=-1", "max_norm=0", "lr=inf", "epochs=inf", "lr=nan"])
def test_numbers_that_no_run_can_use(setting: str) -> None:
    spec = RunSpec.model_validate({"model": {"path": "m"}, "data": {"train": "d.json"}})
    with pytest.raises(UserError, match=f"{setting.partition('=')[0]} is .*; it should be"):
        override_spec(spec, [setting])
