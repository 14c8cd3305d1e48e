"""Owns how a pattern becomes a sentence: alternatives, slots, and the small slips of a person who types."""

import random
import re

INNERMOST = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{([A-Za-z_]+'?)\}")


SAME = (
    ("什么", "啥"),
    ("怎么", "怎样", "如何"),
    ("哪里", "哪儿"),
    ("告诉我", "跟我说"),
    ("请问", "想问一下", "问一下"),
    ("多少", "几"),
    ("介绍一下", "介绍下", "说说"),
    ("英语", "英文"),
    ("你", "您"),
    ("What is", "What's", "Whats"),
    ("Who is", "Who's"),
    ("tell me", "say", "let me know"),
    ("Can you", "Could you", "Would you"),
    ("I am", "I'm", "Im"),
    ("do not", "don't"),
    ("Please", "Kindly"),
    ("How do I", "How can I", "How should I", "How do you", "How does one"),
)
"""Words that stand for each other in what people ask."""
ASKING_ZH = re.compile("什么|啥|谁|哪|几|多少|怎|吗|如何")
ASKING_EN = re.compile(r"^(what|who|where|when|which|why|how|is|are|do|does|can)\b", re.IGNORECASE)
BEFORE_ZH = [
    "请问",
    "你知道",
    "那你说",
    "我想知道",
    "麻烦问下，",
    "你好，请问",
    "嗨，",
    "那么，",
    "哎，",
    "我问你，",
    "考考你：",
    "请回答：",
    "帮我看看",
    "你说",
    "小朋友问我，",
    "再问一个：",
]
AFTER_ZH = [
    "呢",
    "呀",
    "啊",
    "呢？",
    "呀？",
    "？谢谢",
    "，谢谢",
    "啊？",
    "，你知道吗",
    "，告诉我吧",
    "？快说",
    "，好吗",
    "吖",
]
BEFORE_EN = [
    "Please tell me: ",
    "Hey, ",
    "Hi, ",
    "So, ",
    "Well, ",
    "Tell me, ",
    "Excuse me, ",
    "Quick question: ",
    "I want to know: ",
    "Please, ",
    "Okay, ",
    "And ",
    "Now, ",
    "My question is: ",
    "Do you know: ",
    "Can you tell me ",
    "Could you tell me ",
    "I wonder ",
    "Hello, ",
    "One more: ",
    "Answer me: ",
]
AFTER_EN = [
    ", please",
    ", please?",
    " please",
    " then",
    " exactly?",
    "? Thanks",
    "? Thank you.",
    " again?",
    " by the way?",
    " now?",
    ", do you know?",
    ", my friend?",
]


def choose(rng: random.Random, pattern: str) -> str:
    """Replace every `[a|b|]` of a pattern, innermost first, by one of its alternatives."""
    while "[" in pattern:
        pattern = INNERMOST.sub(lambda found: rng.choice(found.group(1).split("|")), pattern)
    return pattern


def fill(sentence: str, slots: dict[str, str]) -> str:
    """Put values into `{slot}`s; `{Slot}` is the value with a capital first letter.

    Raises:
        KeyError: a slot that has no value.
    """

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        if name in slots:
            return slots[name]
        low = slots[name[0].lower() + name[1:]]
        return low[:1].upper() + low[1:]

    return SLOT.sub(value, sentence)


def spell(rng: random.Random, pattern: str, **slots: str) -> str:
    """Choose alternatives, then fill slots: what a slot holds is never read as a pattern."""
    return fill(choose(rng, pattern), slots)


def vary(rng: random.Random, text: str) -> str:
    """Say the same in other words: words that stand for each other, and words around a question."""
    if rng.random() < 0.3:
        for words in rng.sample(SAME, len(SAME)):
            found = next((word for word in words if word in text), None)
            if found is not None:
                text = text.replace(found, rng.choice(words), 1)
                break
    if text.isascii() and ASKING_EN.match(text):
        if rng.random() < 0.12:
            text = rng.choice(BEFORE_EN) + text[0].lower() + text[1:]
        if rng.random() < 0.1:
            text = text.rstrip("?.") + rng.choice(AFTER_EN)
    elif ASKING_ZH.search(text):
        if rng.random() < 0.12:
            text = rng.choice(BEFORE_ZH) + text
        if rng.random() < 0.15:
            text = text.rstrip("？。") + rng.choice(AFTER_ZH)
    return text


def slip(rng: random.Random, text: str, keep: str = "") -> str:
    """Return what a hurried person may have typed instead of `text`; with `keep` no word of it changes.

    Endings lose or double their marks, English loses capitals, letters swap or drop out.
    """
    if not keep:
        text = vary(rng, text)
    if rng.random() < 0.65:
        return text
    kind = rng.randrange(8)
    if kind == 0:
        return text.rstrip("。？！?!.")
    if kind == 1 and text.endswith(("？", "?", "！", "!")):
        return text + text[-1] * rng.randint(1, 2)
    if kind == 2 and not keep:
        return text.lower()
    if kind == 3 and text.isascii() and not keep and len(text) > 8:
        at = rng.randrange(1, len(text) - 2)
        if text[at : at + 2].isalpha():
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind == 4 and text.isascii() and not keep and len(text) > 12:
        at = rng.randrange(2, len(text) - 1)
        if text[at].isalpha():
            return text[:at] + text[at + 1 :]
    if kind == 5 and not keep:
        return rng.choice(["", " "]) + text + rng.choice([" ", "~", "…", "..", "\n"])
    if kind == 6 and not text.isascii():
        return text.replace("？", "?").replace("，", ",").replace("！", "!")
    if kind == 7 and not text.isascii() and not keep and len(text) > 6:
        at = rng.randrange(1, len(text) - 1)
        return (
            text[:at] + rng.choice(("", "", rng.choice("的了是个一那到底就都还也"))) + text[at + (rng.random() < 0.5) :]
        )
    return text
