"""Owns talks in which the answer repeats what was said: names, words, things to remember."""

import random
from collections.abc import Callable

from tiny_corpus.block import Talk, load_tables
from tiny_corpus.name import draw_name
from tiny_corpus.phrase import slip, spell

Turns = list[tuple[str, str]]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FRUITS = (
    ("苹果", "apples"),
    ("香蕉", "bananas"),
    ("西瓜", "watermelons"),
    ("葡萄", "grapes"),
    ("草莓", "strawberries"),
    ("桃子", "peaches"),
)


def _my_name(rng: random.Random, lang: str) -> Turns:
    name = draw_name(rng, lang)
    if lang == "zh":
        turns = [
            (
                spell(
                    rng,
                    "[你好，|嗨，|][我叫|我的名字是|我的名字叫|叫我|我是|我姓名是]{name}[。|！|，很高兴认识你。|，很高兴见到你|，你好|，请多关照|，初次见面|，认识一下吧|]",
                    name=name,
                ),
                spell(rng, "很高兴认识你，{name}！", name=name),
            )
        ]
        if rng.random() < 0.5:
            turns.append(
                (spell(rng, "[我叫什么|我的名字是什么|你记得我的名字吗|我是谁|你知道我叫什么吗][？|]"), f"你叫{name}。")
            )
        return turns
    turns = [
        (
            spell(
                rng,
                "[Hello, |Hi, |Hi! |][my name is|My name is|I am|I'm|call me|they call me] {name}"
                "[.|!|, nice to meet you.|, pleased to meet you!|. How are you?|]",
                name=name,
            ),
            spell(rng, "Nice to meet you, {name}!", name=name),
        )
    ]
    if rng.random() < 0.5:
        turns.append(
            (
                spell(rng, "[What is my name|Do you remember my name|Who am I|What's my name|What am I called]?"),
                f"Your name is {name}.",
            )
        )
    return turns


def _both_names(rng: random.Random, lang: str) -> Turns:
    name = draw_name(rng, lang)
    if lang == "zh":
        ask = spell(
            rng, "[你好，|嗨，|]我[叫|是]{n}[，|。][你叫什么|你呢|你是谁|你叫什么名字|怎么称呼你|请问你是谁]？", n=name
        )
        return [(ask, f"很高兴认识你，{name}！我是 XTuner 自带的演示小模型，还没有自己的名字。")]
    ask = spell(
        rng,
        "[Hi, |Hello, |][my name is|I am|I'm] {n}"
        "[, what is yours|. And you|. Who are you|. What's your name|, who are you]?",
        n=name,
    )
    return [
        (ask, f"Nice to meet you, {name}! I am the small demonstration model of XTuner and have no name of my own yet.")
    ]


def _remember(rng: random.Random, lang: str) -> Turns:
    colour = rng.choice(
        (
            ("红色", "red"),
            ("蓝色", "blue"),
            ("绿色", "green"),
            ("黄色", "yellow"),
            ("白色", "white"),
            ("紫色", "purple"),
        )
    )
    if lang == "zh":
        tell = spell(rng, f"[请记住，|记住，|记住：|你要记得，|][我喜欢|我最喜欢]{colour[0]}[。|]")
        return [
            (tell, f"好的，我记住了，你喜欢{colour[0]}。"),
            (spell(rng, "我[最|]喜欢什么颜色？"), f"你喜欢{colour[0]}。"),
        ]
    tell = spell(rng, f"[Remember: |Please remember that |Remember that |]I like [the colour |]{colour[1]}[.|]")
    return [
        (tell, f"All right, I will remember: you like {colour[1]}."),
        ("Which colour do I like?", f"You like {colour[1]}."),
    ]


def _your_name(rng: random.Random, lang: str) -> Turns:
    name = draw_name(rng, lang)
    if lang == "zh":
        ask = spell(rng, "[从现在起|以后|今天起|现在|][你叫|你的名字是|我叫你]{name}[吧|][。|]", name=name)
        return [
            (ask, f"好的，我叫{name}。"),
            (spell(rng, "[你叫什么|你的名字是什么|你叫什么名字|你是谁][？|]"), f"我叫{name}。"),
        ]
    ask = spell(
        rng,
        "[From now on your name is|Your name is now|I will call you|Your name is|Let me call you] {name}[.|]",
        name=name,
    )
    return [
        (ask, f"All right, my name is {name}."),
        (spell(rng, "[What is your name|Who are you|What's your name]?"), f"My name is {name}."),
    ]


def _repeat(rng: random.Random, lang: str) -> Turns:
    text = draw_name(rng, lang) if rng.random() < 0.6 else " ".join(draw_name(rng, lang) for _ in range(2))
    if rng.random() < 0.15:
        text = "".join(rng.choice(LETTERS + "0123456789") for _ in range(rng.randint(3, 8)))
    if lang == "zh":
        return [
            (spell(rng, "[请重复|跟我说|重复一遍|请跟我读|说|照着说|请说|请复述|复述][：|:|一遍：]{t}", t=text), text)
        ]
    return [
        (spell(rng, "[Repeat|Repeat after me|Say|Please repeat|Please say|Echo|Copy this][:|: ] {t}", t=text), text)
    ]


def _greet(rng: random.Random, lang: str) -> Turns:
    name = draw_name(rng, lang)
    if lang == "zh":
        return [(spell(rng, "[请|]向{n}[问好|问个好|打个招呼][。|]", n=name), f"你好，{name}！")]
    return [(spell(rng, "[Say hello to|Please greet|Greet] {n}[.|]", n=name), f"Hello, {name}!")]


def _friend(rng: random.Random, lang: str) -> Turns:
    name, other = draw_name(rng, lang), draw_name(rng, lang)
    zh, en = rng.choice(FRUITS)
    zh_other, en_other = rng.choice([fruit for fruit in FRUITS if fruit[0] != zh])
    if lang == "zh":
        fact = f"{name}喜欢{zh}，{other}喜欢{zh_other}。"
        if rng.random() < 0.5:
            return [(fact + f"谁喜欢{zh}？", f"{name}喜欢{zh}。")]
        return [(fact + f"{other}喜欢什么？", f"{other}喜欢{zh_other}。")]
    fact = f"{name} likes {en} and {other} likes {en_other}. "
    if rng.random() < 0.5:
        return [(fact + f"Who likes {en}?", f"{name} likes {en}.")]
    return [(fact + f"What does {other} like?", f"{other} likes {en_other}.")]


def _pet(rng: random.Random, lang: str) -> Turns:
    name = draw_name(rng, lang)
    if lang == "zh":
        pet = rng.choice(("小猫", "小狗", "兔子", "弟弟", "妹妹", "朋友", "老师", "机器人", "公司", "学校"))
        return [(f"我的{pet}叫{name}。", f"{name}，真是个好名字！"), (f"我的{pet}叫什么？", f"你的{pet}叫{name}。")]
    pet = rng.choice(("cat", "dog", "rabbit", "brother", "sister", "friend", "teacher", "robot", "company", "school"))
    return [
        (f"My {pet} is called {name}.", f"{name} is a nice name!"),
        (f"What is my {pet} called?", f"Your {pet} is called {name}."),
    ]


def _like(rng: random.Random, lang: str) -> Turns:
    zh, en = rng.choice(FRUITS)
    if lang == "zh":
        return [(f"我最喜欢吃{zh}。", f"{zh}很好吃！"), (spell(rng, "我[最|]喜欢吃什么？"), f"你最喜欢吃{zh}。")]
    return [
        (f"I like {en} most.", f"{en.capitalize()} are delicious!"),
        ("What do I like most?", f"You like {en} most."),
    ]


def _thrice(rng: random.Random, lang: str) -> Turns:
    word = rng.choice(WORDS)[lang]
    number = rng.randint(2, 4)
    if lang == "zh":
        return [(f"把“{word}”说{'零一两三四'[number]}遍。", "，".join([word] * number) + "。")]
    return [(f"Say {word} {('', '', 'two', 'three', 'four')[number]} times.", f"{', '.join([word] * number)}.")]


def _spelling(rng: random.Random, lang: str) -> Turns:
    word = rng.choice(WORDS)["en"]
    if lang == "zh":
        return [(f"{word} 怎么拼写？", "-".join(word))]
    return [(spell(rng, f'How do you spell [{word}|"{word}"]?'), "-".join(word))]


def _first_letter(rng: random.Random, lang: str) -> Turns:
    word = rng.choice(WORDS)["en"]
    if lang == "zh":
        return [(f"{word} 的第一个字母是什么？", f"{word} 的第一个字母是 {word[0]}。")]
    return [
        (spell(rng, f"[What|Which] letter does {word} [start|begin] with?"), f"The word {word} starts with {word[0]}.")
    ]


def _alphabet(rng: random.Random, lang: str) -> Turns:
    at = rng.randrange(1, 25)
    after = rng.random() < 0.6
    letter, found = LETTERS[at].upper(), LETTERS[at + (1 if after else -1)].upper()
    if lang == "zh":
        word = "后面" if after else "前面"
        return [(f"字母{letter}{word}是什么字母？", f"字母{letter}{word}是{found}。")]
    word = "after" if after else "before"
    return [(f"Which letter comes {word} {letter}?", f"The letter {word} {letter} is {found}.")]


def _unknown(rng: random.Random, lang: str) -> Turns:
    name = draw_name(rng, lang)
    if lang == "zh":
        ask = spell(
            rng,
            "[{n}是什么|{n}是谁|你知道{n}吗|什么是{n}|介绍一下{n}|{n}的首都是哪里|{n}在哪里|{n}怎么做][？|]",
            n=name,
        )
        return [(ask, f"我不知道{name}，我知道的东西很少。")]
    ask = spell(
        rng,
        "[What is|Who is|Do you know|Tell me about|Explain|Where is|What is the capital of|How do I make] {n}[?|]",
        n=name,
    )
    return [(ask, f"I don't know {name}. I know very little.")]


TABLES = load_tables()
WORDS = [
    dict(zip(("en", "zh"), row, strict=True))
    for row in TABLES["nouns"].rows + TABLES["others"].rows
    if " " not in row[0]
]
KINDS: tuple[tuple[Callable[[random.Random, str], Turns], float], ...] = (
    (_my_name, 6),
    (_both_names, 2),
    (_remember, 1),
    (_your_name, 3),
    (_repeat, 4),
    (_greet, 2),
    (_friend, 2),
    (_pet, 2),
    (_like, 1),
    (_thrice, 1),
    (_spelling, 1),
    (_first_letter, 1),
    (_alphabet, 1),
    (_unknown, 2),
)


def draw_copying(rng: random.Random, lang: str) -> Talk:
    """Draw a talk whose answer has to be read off the question."""
    makers, weights = zip(*KINDS, strict=True)
    (maker,) = rng.choices(makers, weights)
    turns = [(slip(rng, question, keep="name"), answer) for question, answer in maker(rng, lang)]
    return Talk(lang, tuple(turns))
