"""Forms of the families that no golden covers, against one decoder written from the papers in plain torch (fp32).

It reads tensors by the names of the checkpoints and shares no code with the models.
"""

import math

import pytest
import torch
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from xtuner.model import register
from xtuner.model.attention import PACKED

register.register_families()

SIZES = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
LLAMA = {**SIZES, "intermediate_size": 40, "initializer_range": 0.25, "bos_token_id": 1, "eos_token_id": 2}
GLM = {
    "padded_vocab_size": 50,
    "hidden_size": 48,
    "num_layers": 2,
    "num_attention_heads": 4,
    "ffn_hidden_size": 40,
    "kv_channels": 8,
    "initializer_range": 0.25,
}
QWEN = {**SIZES, "intermediate_size": 80, "kv_channels": 12, "seq_length": 10, "initializer_range": 0.25}
LENGTH = 23


def rms(x, weight, eps):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def turn(x, base, scale=1.0, pairs=False):
    """Rotate (T, H, d) as complex numbers."""
    size = x.shape[-1]
    angle = torch.arange(len(x))[:, None] / scale / base ** (torch.arange(0, size, 2) / size)
    circle = torch.polar(torch.ones_like(angle), angle)[:, None]
    z = torch.complex(x[..., 0::2], x[..., 1::2]) if pairs else torch.complex(*x.chunk(2, dim=-1))
    z = z * circle
    return torch.stack((z.real, z.imag), dim=-1).flatten(-2) if pairs else torch.cat((z.real, z.imag), dim=-1)


def slopes(heads):
    power = 2 ** int(math.log2(heads))
    found = [2 ** (-8 * n / power) for n in range(1, power + 1)]
    return torch.tensor(found + [2 ** (-4 * n / power) for n in range(1, 2 * (heads - power), 2)])


def attend(query, key, value, bias=0.0):
    """(T, H, d), (T, G, d) -> (T, H * d)."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5 + bias
    hidden = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def ntk(config_base, scaling, limit, size):
    """The base of dynamic NTK for LENGTH tokens."""
    wider = scaling * LENGTH / limit - (scaling - 1) if limit < LENGTH else 1
    return config_base * wider ** (size / (size - 2))


class Weights:
    """Tensors of a model, applied by name."""

    def __init__(self, model):
        self.tensors = {name: value.detach() for name, value in model.state_dict().items()}

    def __getitem__(self, name):
        return self.tensors[name]

    def linear(self, name, x):
        return functional.linear(x, self[f"{name}.weight"], self.tensors.get(f"{name}.bias"))


def llama_like(model, ids):
    """InternLM, Baichuan, InternLM2, MiniCPM and DeepSeek-MoE."""
    config, w, kind = model.config, Weights(model), model.config.model_type
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    size = config.hidden_size // heads
    alibi = kind == "baichuan" and getattr(config, "alibi", False)
    base, stretch = float(getattr(config, "rope_theta", 10000)), 1.0
    scaling = getattr(config, "rope_scaling", None) or {}
    if kind == "internlm":
        rotary = config.rotary or {"base": 10000, "type": "dynamic"}
        base, groups = rotary["base"], heads
        if rotary["type"] == "dynamic":
            base = ntk(base, rotary.get("scaling_factor", 1.0), config.max_position_embeddings, size)
    elif scaling.get("type") == "dynamic":
        base = ntk(base, scaling["factor"], config.max_position_embeddings, size)
    elif scaling.get("type") == "linear":
        stretch = scaling["factor"]
    second = kind == "internlm2"
    branch = config.scale_depth / math.sqrt(config.num_hidden_layers) if kind == "minicpm" else 1.0
    x = w["model.tok_embeddings.weight" if second else "model.embed_tokens.weight"][ids]
    x = x * (config.scale_emb if kind == "minicpm" else 1)
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        h = rms(x, w[at + ("attention_norm.weight" if second else "input_layernorm.weight")], config.rms_norm_eps)
        if second:
            rows = w.linear(at + "attention.wqkv", h).view(LENGTH, groups, heads // groups + 2, size)
            query, key, value = rows[:, :, :-2].reshape(LENGTH, heads, size), rows[:, :, -2], rows[:, :, -1]
        elif kind == "baichuan":
            query, key, value = (p.view(LENGTH, heads, size) for p in w.linear(at + "self_attn.W_pack", h).chunk(3, -1))
        else:
            query, key, value = (w.linear(f"{at}self_attn.{p}_proj", h).view(LENGTH, -1, size) for p in "qkv")
        bias = 0.0
        if alibi:
            places = torch.arange(LENGTH)
            bias = slopes(heads)[:, None, None] * (places[None] - places[:, None])
        else:
            query, key = turn(query, base, stretch), turn(key, base, stretch)
        mixed = attend(query, key, value, bias)
        x = x + branch * w.linear(at + ("attention.wo" if second else "self_attn.o_proj"), mixed)
        h = rms(x, w[at + ("ffn_norm.weight" if second else "post_attention_layernorm.weight")], config.rms_norm_eps)
        names = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2") if second else None
        x = x + branch * (experts(w, config, at, h) if kind == "deepseek" else gated(w, at, h, names))
    x = rms(x, w["model.norm.weight"], config.rms_norm_eps)
    if kind == "minicpm":
        x = x / (config.hidden_size / config.dim_model_base)
    head = w["output.weight" if second else "lm_head.weight"]
    return x @ (functional.normalize(head) if getattr(config, "norm_head", False) else head).T


def gated(w, at, h, names=None):
    gate, up, down = names or ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    return w.linear(at + down, functional.silu(w.linear(at + gate, h)) * w.linear(at + up, h))


def experts(w, config, at, h):
    if f"{at}mlp.gate.weight" not in w.tensors:
        return gated(w, at, h)
    scores = w.linear(f"{at}mlp.gate", h).softmax(-1)
    out = torch.zeros_like(h)
    for place, row in enumerate(scores):
        best, chosen = row.topk(config.num_experts_per_tok)
        best = best / best.sum() if config.norm_topk_prob and len(best) > 1 else best
        for share, index in zip(best, chosen, strict=True):
            parts = tuple(f"mlp.experts.{index}.{part}_proj" for part in ("gate", "up", "down"))
            out[place] += share * gated(w, at, h[place], parts)
    if config.n_shared_experts is not None:
        out += gated(w, at, h, tuple(f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")))
    return out


def chatglm(model, ids):
    config, w = model.config, Weights(model)
    heads, size = config.num_attention_heads, config.kv_channels
    groups = config.multi_query_group_num if config.multi_query_attention else heads

    def norm(name, x):
        if config.rmsnorm:
            return rms(x, w[f"{name}.weight"], config.layernorm_epsilon)
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], config.layernorm_epsilon)

    def half_turned(x):
        return torch.cat((turn(x[..., : size // 2], 10000 * config.rope_ratio, pairs=True), x[..., size // 2 :]), -1)

    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(config.num_layers):
        at = f"transformer.encoder.layers.{layer}."
        h = norm(at + "input_layernorm", x)
        fused = w.linear(at + "self_attention.query_key_value", h)
        if config.multi_query_attention:
            parts = fused.split([heads * size, groups * size, groups * size], dim=-1)
            query, key, value = (part.view(LENGTH, -1, size) for part in parts)
        else:
            query, key, value = fused.view(LENGTH, heads, 3 * size).split(size, dim=-1)
        mixed = w.linear(at + "self_attention.dense", attend(half_turned(query), half_turned(key), value))
        x = mixed + (h if config.apply_residual_connection_post_layernorm else x)
        h = norm(at + "post_attention_layernorm", x)
        gate, up = w.linear(at + "mlp.dense_h_to_4h", h).chunk(2, -1)
        mixed = w.linear(at + "mlp.dense_4h_to_h", functional.silu(gate) * up)
        x = mixed + (h if config.apply_residual_connection_post_layernorm else x)
    if config.post_layer_norm:
        x = norm("transformer.encoder.final_layernorm", x)
    return x @ w["transformer.output_layer.weight"].T


def qwen(model, ids):
    config, w = model.config, Weights(model)
    size, trained = config.kv_channels, config.seq_length
    turned, base = int(size * config.rotary_pct), config.rotary_emb_base
    if config.use_dynamic_ntk:
        alpha = max(2 ** math.ceil(math.log2(LENGTH / trained) + 1) - 1, 1)
        base = base * alpha ** (turned / (turned - 2))
    x = w["transformer.wte.weight"][ids]
    for layer in range(config.num_hidden_layers):
        at = f"transformer.h.{layer}."
        h = rms(x, w[at + "ln_1.weight"], config.layer_norm_epsilon)
        query, key, value = (part.view(LENGTH, -1, size) for part in w.linear(at + "attn.c_attn", h).chunk(3, -1))
        query, key = (torch.cat((turn(p[..., :turned], base), p[..., turned:]), -1) for p in (query, key))
        if config.use_logn_attn:
            grow = [math.log(place, trained) if place > trained else 1.0 for place in range(1, LENGTH + 1)]
            query = query * torch.tensor(grow)[:, None, None]
        x = x + w.linear(at + "attn.c_proj", attend(query, key, value))
        h = rms(x, w[at + "ln_2.weight"], config.layer_norm_epsilon)
        x = x + gated(w, at, h, ("mlp.w2", "mlp.w1", "mlp.c_proj"))
    x = rms(x, w["transformer.ln_f.weight"], config.layer_norm_epsilon)
    return x @ w["lm_head.weight"].T


LINEAR, DYNAMIC = {"type": "linear", "factor": 2.5}, {"type": "dynamic", "factor": 3.0}
MOE = {"n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
FORMS = [
    ("internlm", {"bias": True}),
    ("internlm", {"bias": False, "rotary": {"base": 500, "type": "origin"}}),
    ("internlm", {"max_position_embeddings": 9}),
    (
        "internlm",
        {"rotary": {"base": 900, "type": "dynamic", "scaling_factor": 2.0}, "max_position_embeddings": 9},
    ),
    ("internlm", {"tie_word_embeddings": True, "num_attention_heads": 3, "rms_norm_eps": 1e-2}),
    ("internlm2", {"bias": False, "num_key_value_heads": 2, "rope_theta": 1000000}),
    ("internlm2", {"bias": True, "num_key_value_heads": 1, "rope_scaling": LINEAR}),
    ("internlm2", {"bias": True, "rope_scaling": DYNAMIC, "max_position_embeddings": 9}),
    ("internlm2", {"tie_word_embeddings": True, "num_key_value_heads": 2, "vocab_size": 67, "pretraining_tp": 2}),
    ("baichuan", {"max_position_embeddings": 64}),
    ("baichuan", {"max_position_embeddings": 64, "model_max_length": 8, "norm_head": True, "z_loss_weight": 0}),
    ("baichuan", {"model_max_length": 8, "num_attention_heads": 6}),
    ("baichuan", {"model_max_length": 64, "num_attention_heads": 3, "norm_head": True}),
    ("baichuan", {"model_max_length": 64, "num_attention_heads": 8, "tie_word_embeddings": True, "norm_head": True}),
    ("baichuan", {"model_max_length": 64, "num_attention_heads": 12, "vocab_size": 71}),
    ("chatglm", {"multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True}),
    ("chatglm", {"multi_query_attention": True, "multi_query_group_num": 1, "rope_ratio": 50}),
    ("chatglm", {"multi_query_attention": True, "multi_query_group_num": 4, "add_bias_linear": True}),
    ("chatglm", {"add_qkv_bias": True, "rmsnorm": False, "original_rope": False, "kv_channels": None}),
    ("chatglm", {"apply_residual_connection_post_layernorm": True, "fp32_residual_connection": True}),
    ("chatglm", {"post_layer_norm": False, "kv_channels": 16, "layernorm_epsilon": 1e-2, "rmsnorm": False}),
    ("chatglm", {"apply_query_key_layer_scaling": False, "attention_softmax_in_fp32": False, "seq_length": 8}),
    ("qwen", {"use_dynamic_ntk": True, "use_logn_attn": True}),
    ("qwen", {"use_dynamic_ntk": False, "use_logn_attn": True, "no_bias": False}),
    ("qwen", {"use_dynamic_ntk": True, "use_logn_attn": False, "rotary_pct": 0.5, "seq_length": 3}),
    ("qwen", {"seq_length": 64, "rotary_emb_base": 700, "use_flash_attn": True, "bf16": True, "fp32": False}),
    ("qwen", {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-2, "softmax_in_fp32": True}),
    ("deepseek", {**MOE, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    ("deepseek", {**MOE, "num_experts_per_tok": 3, "norm_topk_prob": True, "num_key_value_heads": 2}),
    ("deepseek", {**MOE, "moe_layer_freq": 2, "attention_bias": True, "rope_scaling": LINEAR}),
    ("deepseek", {**MOE, "num_experts_per_tok": 1, "norm_topk_prob": True, "tie_word_embeddings": True}),
    ("deepseek", {"rope_scaling": DYNAMIC, "max_position_embeddings": 9, "num_key_value_heads": 1}),
    ("minicpm", {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}),
    (
        "minicpm",
        {
            "scale_emb": 3,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            "rope_scaling": LINEAR,
            "dim_model_base": 8,
        },
    ),
    (
        "minicpm",
        {"scale_depth": 2.0, "dim_model_base": 24, "rope_theta": 300.5, "rope_scaling": DYNAMIC, "attention_bias": True}
        | {"max_position_embeddings": 9, "num_key_value_heads": 1},
    ),
]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_the_model_computes_what_the_papers_say(kind, form, tmp_path):
    torch.manual_seed(0)
    sizes = {"chatglm": GLM, "qwen": QWEN}.get(kind, LLAMA)
    config = CONFIG_MAPPING[kind](**{**sizes, **form})
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    ids = torch.randint(3, 50, (LENGTH,))
    with torch.no_grad():
        expected = {"chatglm": chatglm, "qwen": qwen}.get(kind, llama_like)(model, ids)
        found = model(ids[None]).logits[0]
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=PACKED)
        torch.testing.assert_close(again(ids[None]).logits[0], expected, atol=2e-4, rtol=1e-4)


ASKS_TOO_MUCH = [
    ("internlm", {"rope_scaling": DYNAMIC}, "rotary"),
    ("internlm", {"hidden_act": "fatrelu"}, "no activation called fatrelu"),
    ("internlm2", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "linear or dynamic"),
    ("internlm2", {"rope_scaling": {**DYNAMIC, "alpha": 7}}, "alpha is not known"),
    ("internlm2", {"num_key_value_heads": 3}, "do not divide"),
    ("baichuan", {"z_loss_weight": 0.01}, "z_loss_weight"),
    ("baichuan", {"rope_scaling": LINEAR}, "rope_scaling"),
    ("chatglm", {"interleaved_qkv": True}, "interleaved_qkv"),
    ("chatglm", {"rope_scaling": LINEAR}, "rope_ratio"),
    ("qwen", {"visual": {"layers": 1}}, "Qwen-VL"),
    ("qwen", {"n_embd": 48}, "first days"),
    ("qwen", {"use_cache_quantization": True}, "8 bits"),
    ("qwen", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("qwen", {"rope_scaling": LINEAR}, "use_dynamic_ntk"),
    ("deepseek", {"kv_lora_rank": 16}, "deepseek_v2"),
    ("deepseek", {**MOE, "routed_scaling_factor": 16.0}, "routed_scaling_factor"),
    ("deepseek", {**MOE, "topk_method": "noaux_tc"}, "topk_method"),
    ("minicpm", {"sparse_config": {"block_size": 64}}, "MiniCPM4"),
    ("minicpm", {"use_sliding_window": True}, "sliding window"),
]


@pytest.mark.parametrize(("kind", "form", "words"), ASKS_TOO_MUCH)
def test_what_a_family_does_not_do_is_refused_and_not_ignored(kind, form, words):
    sizes = {"chatglm": GLM, "qwen": QWEN}.get(kind, LLAMA)
    with pytest.raises(ValueError, match=words):
        CONFIG_MAPPING[kind].from_dict({**sizes, **form})
