"""Saved tokenizers of all families: whoever knows `tokenizer.json` reads them, and spells a chat as we do."""

import shutil

import pytest
from tokenizer_golden import (
    GOLDEN,
    check_strings,
    open_without_us,
    our_ids,
    read_config,
    read_golden,
    talks_of,
)
from transformers import AutoConfig, AutoTokenizer

from xtuner.conversation.builtin import TEMPLATES, find_template
from xtuner.conversation.detect import detect_template
from xtuner.conversation.jinja import to_jinja
from xtuner.export.companion import Speech, write_companions
from xtuner.model.load import load_tokenizer
from xtuner.model.register import find_tokenizer
from xtuner.model.tokenizers.family import FamilyTokenizer

TEMPLATE_OF = {
    "internlm_7b": "internlm_chat",
    "internlm2": "internlm2_chat",
    "internlm2_tok_old": "internlm2_chat",
    "baichuan_7b": "baichuan_chat",
    "baichuan_13b": "baichuan_chat",
    "baichuan2_13b": "baichuan2_chat",
    "chatglm3": "chatglm3",
    "qwen": "qwen_chat",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder of the tokenizer as it was opened for conversations, and as it is opened by the Auto class."""
    found = {}
    for name in TEMPLATE_OF:
        for kind, tokenizer in (
            ("chat", load_tokenizer(str(GOLDEN / name))),
            ("plain", AutoTokenizer.from_pretrained(GOLDEN / name)),
        ):
            found[name, kind] = tmp_path_factory.mktemp(name) / kind
            tokenizer.save_pretrained(found[name, kind])
            base = name if (GOLDEN / name / "config.json").exists() else "internlm2"
            AutoConfig.from_pretrained(GOLDEN / base).save_pretrained(found[name, kind])
    second = tmp_path_factory.mktemp("second") / "chatglm2-6b"
    shutil.copytree(GOLDEN / "chatglm3", second)
    found["chatglm2", "chat"] = tmp_path_factory.mktemp("saved") / "chatglm2-6b"
    found["chatglm2", "chat"].mkdir()  # as `xtuner convert merge` writes it, with the template of the run
    words = Speech(load_tokenizer(str(second)), second, find_template("chatglm2"))
    write_companions(second, found["chatglm2", "chat"], words, tell=print)
    return found


@pytest.mark.parametrize("name", TEMPLATE_OF)
def test_the_folder_names_nothing_of_ours(name, folders):
    folder, template = folders[name, "plain"], TEMPLATE_OF[name]
    config = read_config(folder)
    assert (config["tokenizer_class"], "auto_map" in config) == ("PreTrainedTokenizerFast", False)
    own = read_config(GOLDEN / name).get("chat_template")
    assert config["chat_template"] == (own or to_jinja(TEMPLATES[template]))
    assert detect_template(folder) == template
    vocabulary = find_tokenizer(None, read_config(GOLDEN / name)["tokenizer_class"]).VOCABULARY
    assert (folder / vocabulary).read_bytes() == (GOLDEN / name / vocabulary).read_bytes()
    again = load_tokenizer(str(folder))
    assert not isinstance(again, FamilyTokenizer)
    assert again.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_without_us_texts_and_chats_are_the_same(folders):
    goldens = {name: read_golden(name, "fast" if name.startswith("internlm2") else "slow") for name in TEMPLATE_OF}
    asked = {}
    for (name, kind), folder in folders.items():
        texts = [row["text"] for row in goldens[name]["cases"]] if kind == "plain" else []
        # ChatGLM3 reads the words for roles as text, and so its own template, unless it is opened for conversations
        chats = kind == "chat" or not name.startswith("chatglm")
        asked[name, kind] = (folder, texts, talks_of(TEMPLATE_OF.get(name, name)) if chats else [])
    found = dict(zip(asked, open_without_us(asked.values()), strict=True))
    for (name, kind), (ids, decoded, skipped, said) in found.items():
        folder, texts, talks = asked[name, kind]
        if texts:
            cases = goldens[name]["cases"]
            assert ids == [row["ids"] for row in cases]
            if name not in ("internlm_7b", "baichuan_7b", "baichuan_13b", "baichuan2_13b"):  # theirs put spaces in
                assert decoded == [row["decode"] for row in cases]
            if name != "chatglm3":  # whose commands are not left out by the original class
                assert skipped == [row["decode_skip_special"] for row in cases]
        template = TEMPLATE_OF.get(name, name)
        base = folder if name == "chatglm2" else GOLDEN / name
        assert said == [our_ids(base, template, talk) for talk in talks], name
    assert len(found["chatglm3", "chat"][3]) == 5


def test_a_saved_tokenizer_saved_again_is_the_same(folders):
    """Opened with its own class, from tokenizer.json alone."""
    again = find_tokenizer("internlm", None).from_pretrained(folders["internlm_7b", "plain"])
    check_strings(again, read_golden("internlm_7b"))
