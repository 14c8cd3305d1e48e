"""LoRA: our layers against PEFT's, names and files that PEFT and 0.1.x know, and refusals that name the modules."""

import json
from contextlib import nullcontext

import old_files
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear

from xtuner.checkpoint.adapter import file_name, write_adapter
from xtuner.checkpoint.path import is_state
from xtuner.config.spec import LoraSpec, ModelSpec, QuantSpec
from xtuner.errors import UserError
from xtuner.model.load import load_base, load_model
from xtuner.model.lora import adapter_config, add_lora, default_targets
from xtuner.model.lora_layer import LoraLinear
from xtuner.model.lora_layer_4bit import LoraLinear4bit
from xtuner.model.lora_layer_8bit import LoraLinear8bit
from xtuner.model.trainable import load_trainable, trainable_state

IDS = torch.arange(5, 45).view(2, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.make_tiny_internlm2(tmp_path_factory.mktemp("internlm2")))


def base(folder, quant=None, train=True):
    spec = ModelSpec(path=folder, quant=quant)
    return load_base(spec, device="cpu", dtype=torch.float32, train=train)


def adapted(folder, train=True, seed=0, quant=None, adapter=None, **lora):
    torch.manual_seed(seed)
    spec = ModelSpec(path=folder, lora=LoraSpec(**{"r": 4, "alpha": 8, **lora}), quant=quant, adapter=adapter)
    return load_model(spec, device="cpu", dtype=torch.float32, train=train)


def shake(model, seed=5):
    """Give B something, so that the adapter does something."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_default_targets_are_every_linear_layer_and_internlm2s_head(folder):
    model = adapted(folder)
    assert adapter_config(model)["target_modules"] == ["output", "w1", "w2", "w3", "wo", "wqkv"]
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == 11
    llama = adapted(str(tiny.make_tiny_llama(tiny.Path(folder).parent / "llama")))
    assert "lm_head" not in adapter_config(llama)["target_modules"]
    assert len(adapter_config(llama)["target_modules"]) == 7


@pytest.mark.parametrize("quant", [None, QuantSpec(), QuantSpec(bits=8)])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"rslora": True}, {"rank_pattern": {"wo": 2}}])
def test_equals_pefts_own_layers(folder, quant, options):
    """Same base, same weights, same random numbers: same logits and gradients with PEFT's layers and with ours."""
    ours = shake(adapted(folder, quant=quant, **options))
    config = adapter_config(ours)
    theirs = get_peft_model(base(folder, quant), LoraConfig(**{k: config[k] for k in KEPT}))
    kinds = {None: LoraLinear, 4: LoraLinear4bit, 8: LoraLinear8bit}
    kind = kinds[quant and quant.bits]
    assert sum(isinstance(module, kind) for module in ours.modules()) == (11 if quant is None else 10)
    assert not any(isinstance(module, tuple(kinds.values())) for module in theirs.modules())
    load_trainable(theirs, trainable_state(ours))
    results = []
    for model in (ours, theirs.train()):
        torch.manual_seed(7)
        out = model(IDS, use_cache=False).logits
        out.logsumexp(-1).sum().backward()
        results.append((out, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-4)
    for name, grad in results[1][1].items():
        torch.testing.assert_close(results[0][1][name], grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=1e-4)


KEPT = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "rank_pattern", "task_type")


def test_dora_runs_on_pefts_path(folder):
    model = shake(adapted(folder, dora=True))
    out = model(IDS, use_cache=False).logits
    out.sum().backward()
    vectors = [p for name, p in model.named_parameters() if "magnitude" in name]
    assert vectors
    assert all(vector.grad is not None for vector in vectors)


def test_disabled_and_merged_adapters(folder):
    model = shake(adapted(folder))
    plain, changed = logits(base(folder)), logits(model)
    assert (plain - changed).abs().max() > 0.1
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain)
    torch.testing.assert_close(logits(model.merge_and_unload()), changed, atol=1e-4, rtol=1e-4)


def test_only_the_adapter_is_trained_in_fp32(folder):
    torch.manual_seed(0)
    spec = ModelSpec(path=folder, lora=LoraSpec(r=4, modules_to_save=["tok_embeddings"]))
    model = load_model(spec, device="cpu", dtype=torch.bfloat16, train=True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(("lora_" in name) or ("modules_to_save" in name) for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in trained} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS, use_cache=False).logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained.values())


def test_the_fresh_adapter_depends_on_the_callers_seed_alone(folder):
    one, same, other = (trainable_state(adapted(folder, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    before = torch.random.get_rng_state()
    base(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_are_those_of_0_1_x(folder):
    state = trainable_state(adapted(folder))
    assert len(state) == 22
    assert state["llm.base_model.model.model.layers.0.attention.wqkv.lora_A.default.weight"].shape == (4, 64)
    assert state["llm.base_model.model.output.lora_B.default.weight"].shape == (752, 4)
    full = load_model(ModelSpec(path=folder), device="cpu", dtype=torch.float32, train=True)
    assert "llm.model.layers.1.feed_forward.w2.weight" in trainable_state(full)
    assert len(trainable_state(full)) == 17


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["norm"], "bias": "all"}, {"dora": True}])
def test_files_open_in_peft_and_pefts_open_here(folder, tmp_path, options):
    model = shake(adapted(folder, **options))
    expected = logits(model)
    tensors = {file_name(name): value for name, value in trainable_state(model).items()}
    assert None not in tensors
    write_adapter(tmp_path / "ours", adapter_config(model), tensors)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folder
    assert config["inference_mode"] is True
    theirs = PeftModel.from_pretrained(base(folder), tmp_path / "ours")
    if "bias" not in options:  # PEFT itself does not read trained biases back
        torch.testing.assert_close(logits(theirs), expected, atol=1e-5, rtol=1e-5)
    here = adapted(folder, seed=9, adapter=str(tmp_path / "ours"), **options)
    torch.testing.assert_close(logits(here), expected)
    model.save_pretrained(tmp_path / "theirs")
    spec = ModelSpec(path=folder, adapter=str(tmp_path / "theirs"))
    opened = load_model(spec, device="cpu", dtype=torch.float32, train=False)
    torch.testing.assert_close(logits(opened), expected, atol=1e-5, rtol=1e-5)


def test_pth_state_goes_on_training(folder, tmp_path):
    model = shake(adapted(folder))
    for layout in ({"state_dict": trainable_state(model), "meta": {"iter": 3}}, trainable_state(model)):
        torch.save(layout, tmp_path / "iter_3.pth")
        torch.testing.assert_close(logits(adapted(folder, adapter=str(tmp_path / "iter_3.pth"))), logits(model))
        spec = ModelSpec(path=folder, lora=LoraSpec(r=4, alpha=8), weights=str(tmp_path / "iter_3.pth"))
        again = load_model(spec, device="cpu", dtype=torch.float32, train=True)
        torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targets": ["wqkv", "q_proj"]}, "no module called q_proj"),
        ({"modules_to_save": ["lm_head"]}, "no module called lm_head"),
    ],
)
def test_targets_that_match_nothing_are_refused(folder, lora, message):
    with pytest.raises(UserError, match=message):
        adapted(folder, **lora)


def test_adapters_that_do_not_fit_are_refused(folder, tmp_path):
    model = adapted(folder)
    tensors = {file_name(name): value for name, value in trainable_state(model).items()}
    good = adapter_config(model)
    write_adapter(tmp_path / "good", good, tensors)
    llama = str(tiny.make_tiny_llama(tmp_path / "llama"))
    cases = [
        (folder, {"r": 2}, "good", r"lora_A.* is \(4, 64\) instead of \(2, 64\)"),
        (folder, {"alpha": 32}, "good", "lora_alpha 8"),
        (folder, {"targets": ["wqkv"]}, "good", r"it has no .*feed_forward\.w1"),
        (llama, {}, "good", r"it has no .*attention\.wqkv"),
        (folder, {}, "absent", "no adapter"),
    ]
    for path, lora, name, message in cases:
        with pytest.raises(UserError, match=message):
            adapted(path, adapter=str(tmp_path / name), **lora)
    some = dict(list(tensors.items())[:-2])
    write_adapter(tmp_path / "some", good, some)
    with pytest.raises(UserError, match=r"incomplete: there is no .*output"):
        adapted(folder, adapter=str(tmp_path / "some"))
    for path, name in ((llama, "good"), (folder, "absent")):
        spec = ModelSpec(path=path, adapter=str(tmp_path / name))
        with pytest.raises(UserError, match=r"no module called|no adapter"):
            load_model(spec, device="cpu", dtype=torch.float32, train=False)
    wide = str(tiny.make_tiny_internlm2(tmp_path / "wide", hidden=96))
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(ModelSpec(path=wide, adapter=str(tmp_path / "good")), device="cpu", dtype=torch.float32, train=False)


def opened(base_folder, adapter):
    spec = ModelSpec(path=str(base_folder), adapter=str(adapter))
    return load_model(spec, device="cpu", dtype=torch.float32, train=False)


def test_an_adapter_for_more_or_fewer_layers_is_refused(folder, tmp_path):
    deep = tiny.make_tiny_internlm2(tmp_path / "deep", layers=3)
    for base_folder, name in ((folder, "shallow"), (deep, "deep_adapter")):
        model = adapted(str(base_folder))
        tensors = {file_name(key): value for key, value in trainable_state(model).items()}
        write_adapter(tmp_path / name, adapter_config(model), tensors)
    opened(deep, tmp_path / "deep_adapter")
    with pytest.raises(UserError, match=r"it has nothing for model\.layers\.2\.attention\.wo \(and 4 more\)"):
        opened(deep, tmp_path / "shallow")
    with pytest.raises(UserError, match=r"the model has no model\.layers\.2\.attention\.wo \(and 4 more\)"):
        opened(folder, tmp_path / "deep_adapter")
    weights = tmp_path / "shallow" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut short|damaged"):
        opened(folder, tmp_path / "shallow")
    weights.unlink()
    with pytest.raises(UserError, match="no weights"):
        opened(folder, tmp_path / "shallow")


def test_pefts_layer_is_not_what_we_inject(folder):
    """The comparison above is between two things."""
    kinds = {type(module) for module in adapted(folder).modules() if isinstance(module, PeftLinear)}
    assert kinds == {LoraLinear}


def test_regular_expressions_are_targets(folder):
    model = adapted(folder, targets=r".*layers\.0\.attention\.w.*")
    assert len(trainable_state(model)) == 4
    with pytest.raises(UserError, match="matches no"):
        adapted(folder, targets=r"q_proj.*")


def test_default_targets_leave_out_what_is_saved_whole(folder):
    model = adapted(folder, modules_to_save=["output"])
    assert "output" not in adapter_config(model)["target_modules"]
    assert default_targets(base(folder)) == ["output", "w1", "w2", "w3", "wo", "wqkv"]


@pytest.mark.parametrize("autocast", [False, True])
def test_add_lora_starts_as_the_base(folder, autocast):
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with context:
        plain = logits(base(folder))
        torch.testing.assert_close(logits(add_lora(base(folder), LoraSpec(r=4))), plain)


@pytest.mark.parametrize("name", ["iter_3.pth", "global_step3", "saved"])
def test_a_deepspeed_folder_is_an_adapter_whatever_it_is_called(name, folder, tmp_path):
    model = shake(adapted(folder))
    old_files.write_zero(tmp_path / name, [trainable_state(model)], world=2, stage=2)
    assert is_state(str(tmp_path / name))
    torch.testing.assert_close(logits(adapted(folder, adapter=str(tmp_path / name))), logits(model))


def test_a_folder_of_torchs_own_checkpoints_is_a_state_and_an_adapter_is_none(tmp_path):
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "adapter_config.json").write_text("{}")
    assert is_state(str(tmp_path / "dcp"))
    assert not is_state(str(tmp_path / "hf"))
    assert not is_state(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_fit_no_layer_are_refused(folder, setting):
    add_lora(base(folder), LoraSpec(r=4, targets=["wo"], **{setting: {r"layers\.0\.attention\.wo": 2}}))
    with pytest.raises(UserError, match=f"model.lora.{setting} names w1, and no layer") as caught:
        add_lora(base(folder), LoraSpec(r=4, targets=["wo"], **{setting: {"w1": 2}}))
    assert caught.value.fix == "The layers with an adapter are wo."
