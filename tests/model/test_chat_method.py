"""`model.chat` and its relatives, which programs written for the original models call."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from xtuner.conversation.builtin import TEMPLATES
from xtuner.conversation.encode import Encoder
from xtuner.conversation.jinja import to_jinja
from xtuner.conversation.message import Message
from xtuner.errors import UserError
from xtuner.model import register
from xtuner.model.families.chat import Answer
from xtuner.model.load import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TEMPLATE_OF = {
    "internlm_7b": "internlm_chat",
    "internlm2": "internlm2_chat",
    "baichuan_13b": "baichuan_chat",
    "baichuan2_13b": "baichuan2_chat",
    "chatglm3": "chatglm3",
    "qwen": "qwen_chat",
}
GREEDY = {"do_sample": False, "max_new_tokens": 9}


def open_model(name):
    register.register_families()
    folder = GOLDEN / name
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(str(folder))


@pytest.fixture(scope="module", params=TEMPLATE_OF)
def case(request):
    return TEMPLATES[TEMPLATE_OF[request.param]], *open_model(request.param)


@pytest.fixture(scope="module")
def internlm():
    return open_model("internlm_7b")


def render(template, tokenizer, *turns):
    roles = ("user", "assistant") * len(turns)
    messages = [Message(role, text) for role, text in zip(roles, turns, strict=False)]
    return Encoder(tokenizer).encode(template.render(messages, reply=True))[0]


def test_answers_are_those_of_the_training_prompt(case):
    template, model, tokenizer = case
    answer = Answer(model, tokenizer, "three", [("one", "two")], {})
    assert answer.prompt == render(template, tokenizer, "one", "two", "three")
    ids = torch.tensor([answer.prompt])
    stops = [tokenizer.encode(word, add_special_tokens=False) for word in template.stop_words]
    ends = answer._ends([found[0] for found in stops if len(found) == 1])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=ends, **GREEDY)
    text, turns = model.chat(tokenizer, "three", [("one", "two")], **GREEDY)
    assert text == answer.text(expected[0, ids.shape[1] :].tolist())
    assert turns == [("one", "two"), ("three", text)]


def test_streams_end_with_the_same(case):
    _, model, tokenizer = case
    text, turns = model.chat(tokenizer, "你好", [], **GREEDY)
    said = list(model.stream_chat(tokenizer, "你好", history=[], **GREEDY))
    assert said[-1] == (text, turns)
    assert [len(part) for part, _ in said] == sorted(len(part) for part, _ in said)
    assert list(model.chat_stream(tokenizer, "你好", [], **GREEDY))[-1] == text
    third = list(model.stream_chat(tokenizer, "你好", past_key_values=None, return_past_key_values=True, **GREEDY))
    assert third[-1] == (text, turns, None)


def test_the_form_of_the_history_stays(case):
    template, model, tokenizer = case
    _, turns = model.chat(tokenizer, "a", None, **GREEDY)
    assert isinstance(turns[0], dict) == (template.name == "chatglm3")
    given = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    text, turns = model.chat(tokenizer, "three", given, **GREEDY)
    assert turns == [*given, {"role": "user", "content": "three"}, {"role": "assistant", "content": text}]
    assert text == model.chat(tokenizer, "three", [["one", "two"]], **GREEDY)[0]
    assert len(given) == 2


def test_a_list_of_messages_gives_the_answer_alone(case):
    _, model, tokenizer = case
    messages = [{"role": "user", "content": "你好"}]
    text = model.chat(tokenizer, messages, **GREEDY)
    assert text == model.chat(tokenizer, "你好", **GREEDY)[0]
    assert list(model.chat(tokenizer, messages, stream=True, **GREEDY))[-1] == text


def test_system_texts_have_two_names(internlm):
    model, tokenizer = internlm
    one = Answer(model, tokenizer, "hi", None, {"system": "be kind"})
    two = Answer(model, tokenizer, "hi", None, {"meta_instruction": "be kind"})
    assert one.prompt == two.prompt != Answer(model, tokenizer, "hi", None, {}).prompt
    assert one.options == two.options == {}


def test_an_answer_ends_before_its_stop_word(internlm):
    model, tokenizer = internlm
    answer = Answer(model, tokenizer, "hi", None, {})
    ids = tokenizer.encode("well<eoa>more", add_special_tokens=False)
    assert answer.text(ids) == "well"
    half = tokenizer.encode("ok 😀", add_special_tokens=False)[:-1]
    assert answer.text(half) == "ok"


def test_answers_are_drawn_unless_asked_otherwise(internlm):
    model, tokenizer = internlm
    drawn = set()
    for seed in range(4):
        torch.manual_seed(seed)
        drawn.add(model.chat(tokenizer, "hi", max_new_tokens=9)[0])
    assert len(drawn) > 1
    assert len({model.chat(tokenizer, "hi", **GREEDY)[0] for _ in range(2)}) == 1


def test_a_folder_that_was_trained_with_another_template_says_so(tmp_path):
    shutil.copytree(GOLDEN / "internlm_7b", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": to_jinja(TEMPLATES["vicuna"])}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert Answer(model, load_tokenizer(str(tmp_path)), "hi", None, {}).template.name == "vicuna"


def test_a_streamer_of_ones_own_is_fed(internlm):
    model, tokenizer = internlm
    seen = []

    class Streamer(BaseStreamer):
        def put(self, value):
            seen.extend(value.flatten().tolist())

        def end(self):
            seen.append("end")

    model.chat(tokenizer, "hi", streamer=Streamer(), **GREEDY)
    prompt = Answer(model, tokenizer, "hi", None, {}).prompt
    assert seen[: len(prompt)] == prompt
    assert seen[-1] == "end"


def test_errors_reach_the_listener(internlm):
    model, tokenizer = internlm
    with pytest.raises(ValueError, match="no_such_option"):
        list(model.stream_chat(tokenizer, "hi", no_such_option=1))
    with pytest.raises(UserError, match="turn of the history"):
        model.chat(tokenizer, "hi", ["one"])


def test_generation_stops_when_nobody_listens(internlm):
    model, tokenizer = internlm
    before = threading.active_count()
    stream = model.stream_chat(tokenizer, "hi", max_new_tokens=100_000, min_new_tokens=100_000, do_sample=False)
    next(stream)
    stream.close()
    deadline = time.monotonic() + 120
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before
