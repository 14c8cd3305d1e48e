"""Owns talks about small numbers: sums, differences, products, comparing, counting, word problems."""

import random
from collections.abc import Callable

from tiny_corpus.block import Talk
from tiny_corpus.phrase import slip, spell

ZH = "零一二三四五六七八九十"
EN_WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
THINGS = {
    "zh": ["苹果", "橙子", "铅笔", "糖", "球", "饼干", "鸡蛋", "气球", "草莓", "硬币"],
    "en": ["apples", "oranges", "pencils", "sweets", "balls", "cookies", "eggs", "balloons", "coins"],
}
SIGNS = {"plus": ("+", "加"), "minus": ("-", "减"), "times": ("×", "乘以"), "divided by": ("÷", "除以")}
Turn = tuple[str, str]


def zh_number(value: int) -> str:
    """Write 0 to 99 in Chinese numerals."""
    if value <= 10:
        return ZH[value]
    tens, ones = divmod(value, 10)
    return (ZH[tens] if tens > 1 else "") + "十" + (ZH[ones] if ones else "")


def _operands(rng: random.Random) -> tuple[str, int, int, int]:
    word = rng.choice(("plus", "plus", "plus", "minus", "minus", "minus", "times", "times", "divided by"))
    top = 10 if rng.random() < 0.35 else 20 if rng.random() < 0.5 else 100
    a, b = rng.randint(0, top), rng.randint(0, top)
    if word == "plus":
        return word, a, b, a + b
    if word == "minus":
        a, b = max(a, b), min(a, b)
        return word, a, b, a - b
    a, b = rng.randint(0, 10), rng.randint(1, 10)
    return (word, a, b, a * b) if word == "times" else (word, a * b, b, a)


def _sum(rng: random.Random, lang: str) -> Turn:
    word, a, b, c = _operands(rng)
    sign, zh_word = SIGNS[word]
    loose = {"乘以": ("乘以", "乘以", "乘", "乘上", "x"), "除以": ("除以", "除以", "除")}.get(zh_word, (zh_word,))
    sign = rng.choice((sign, "*" if sign == "×" else "/" if sign == "÷" else sign))
    gap = rng.choice(("", " "))
    slots = {"a": str(a), "b": str(b), "sign": f"{gap}{sign}{gap}", "zh_word": rng.choice(loose), "word": word}
    if rng.random() < 0.15:
        return f"{a}{gap}{sign}{gap}{b}" + rng.choice(("", "=", "=?", " = ?", "?", "？")), f"{a}{sign}{b}={c}"
    if lang == "zh":
        ask = spell(
            rng,
            "[{a}{sign}{b}[等于几|等于多少|等于|是多少|=多少|得多少][？|?|]|[请问|帮我算|算一下|请计算|计算][：|]{a}{sign}{b}[。|]"
            "|{a}{zh_word}{b}[等于几|等于多少|是多少|得几][？|]|[请问|你知道|]{a}{zh_word}{b}[等于几|是多少][吗|][？|]]",
            **slots,
        )
        return ask, f"{a}{zh_word}{b}等于{c}。"
    ask = spell(
        rng,
        "[[What is|What's|How much is|Calculate|Compute|Please calculate|Tell me] {a}{sign}{b}[?|]"
        "|[What is|What's|How much is|Can you calculate] {a} {word} {b}[?|]]",
        **slots,
    )
    return ask.strip(), f"{a} {word} {b} is {c}."


def _word_sum(rng: random.Random, lang: str) -> Turn:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    more = rng.random() < 0.5
    if not more:
        a, b = max(a, b), min(a, b)
    c = a + b if more else a - b
    if lang == "zh":
        word = "加" if more else "减"
        start = f"{zh_number(a)}{word}{zh_number(b)}"
        return start + spell(rng, "[等于几|等于多少|是多少|得几][？|]"), f"{start}等于{zh_number(c)}。"
    start = f"{EN_WORDS[a]} {'plus' if more else 'minus'} {EN_WORDS[b]}"
    return spell(rng, "[What is|How much is|What's] ") + start + rng.choice(
        ("?", "")
    ), f"{start.capitalize()} is {EN_WORDS[c]}."


def _compare(rng: random.Random, lang: str) -> Turn:
    top = rng.choice((10, 20, 100))
    a, b = rng.sample(range(top + 1), 2)
    big = rng.random() < 0.5
    c = max(a, b) if big else min(a, b)
    other = a + b - c
    slots = {"a": str(a), "b": str(b), "c": str(c), "o": str(other)}
    if lang == "zh":
        slots["w"] = "大" if big else "小"
        ask = spell(
            rng,
            "[{a}和{b}[哪个|谁|哪个数][更|比较|]{w}[？|]|哪个[更|]{w}[：|，]{a}还是{b}[？|]|{a}和{b}比[，|]哪个{w}[？|]]",
            **slots,
        )
        return ask, spell(rng, "{c}更{w}。", **slots)
    slots["w"] = "bigger" if big else "smaller"
    slots["x"] = rng.choice((slots["w"], "larger" if big else slots["w"]))
    ask = spell(
        rng,
        "[Which [number |]is {x}[,|:] {a} or {b}?|Which is {x}: {a} or {b}?|{a} or {b}, which [one |]is {x}?]",
        **slots,
    )
    return ask, spell(rng, "{c} is {w} than {o}.", **slots)


def _is_bigger(rng: random.Random, lang: str) -> Turn:
    a, b = rng.sample(range(rng.choice((11, 101))), 2)
    if lang == "zh":
        word = "大" if rng.random() < 0.5 else "小"
        true = (a > b) == (word == "大")
        real = "大" if a > b else "小"
        return f"{a}比{b}{word}吗" + rng.choice(("？", "")), f"{'是的' if true else '不是'}，{a}比{b}{real}。"
    word = rng.choice(("bigger", "smaller"))
    true = (a > b) == (word == "bigger")
    return f"Is {a} {word} than {b}?", f"{'Yes' if true else 'No'}, {a} is {'bigger' if a > b else 'smaller'} than {b}."


def _neighbour(rng: random.Random, lang: str) -> Turn:
    a = rng.randint(1, 99)
    after = rng.random() < 0.6
    c = a + 1 if after else a - 1
    if lang == "zh":
        word = "后面" if after else "前面"
        return spell(rng, f"{a}{word}[的数|]是[几|多少][？|]"), f"{a}{word}的数是{c}。"
    word = "after" if after else "before"
    return spell(rng, f"[What|Which] number [comes|is] {word} {a}?"), f"The number {word} {a} is {c}."


def _parity(rng: random.Random, lang: str) -> Turn:
    a = rng.randint(0, 100)
    even = a % 2 == 0
    if lang == "zh":
        if rng.random() < 0.4:
            asked = rng.random() < 0.5
            return (
                f"{a}是{'偶数' if asked else '奇数'}吗？",
                f"{'是的' if asked == even else '不是'}，{a}是{'偶数' if even else '奇数'}。",
            )
        return spell(rng, f"{a}是[奇数还是偶数|偶数还是奇数|单数还是双数][？|]"), f"{a}是{'偶数' if even else '奇数'}。"
    if rng.random() < 0.4:
        asked = rng.random() < 0.5
        word = "even" if asked else "odd"
        ask = spell(rng, f"Is {a} [an {word} number|{word}]?")
        return ask, f"{'Yes' if asked == even else 'No'}, {a} is {'even' if even else 'odd'}."
    return spell(
        rng, f"Is {a} [even or odd|odd or even|an even or an odd number]?"
    ), f"{a} is {'even' if even else 'odd'}."


def _count(rng: random.Random, lang: str) -> Turn:
    a = rng.randint(1, 5)
    b = rng.randint(a + 2, 12)
    numbers = [str(n) for n in range(a, b + 1)]
    if lang == "zh":
        return spell(rng, f"[请|]从{a}数到{b}[。|]"), "、".join(numbers) + "。"
    return spell(rng, f"[Please |Can you |]count from {a} to {b}[.|]").capitalize(), ", ".join(numbers) + "."


def _largest(rng: random.Random, lang: str) -> Turn:
    numbers = rng.sample(range(rng.choice((21, 100))), 3)
    big = rng.random() < 0.5
    c = max(numbers) if big else min(numbers)
    if lang == "zh":
        word = "最大" if big else "最小"
        return f"{'、'.join(map(str, numbers))}中{word}的是{rng.choice(('哪个', '多少', '几'))}？", f"{word}的是{c}。"
    word = "largest" if big else "smallest"
    return f"Which is the {word}: {', '.join(map(str, numbers))}?", f"The {word} is {c}."


def _double(rng: random.Random, lang: str) -> Turn:
    a = rng.randint(1, 50)
    if rng.random() < 0.5:
        return (
            (f"{a}的两倍是多少？", f"{a}的两倍是{2 * a}。")
            if lang == "zh"
            else (f"What is double {a}?", f"Double {a} is {2 * a}.")
        )
    if lang == "zh":
        return f"{2 * a}的一半是多少？", f"{2 * a}的一半是{a}。"
    return spell(rng, f"What is half of {2 * a}?"), f"Half of {2 * a} is {a}."


def _story(rng: random.Random, lang: str) -> Turn:
    thing = rng.choice(THINGS[lang])
    a, b = rng.randint(1, 12), rng.randint(1, 10)
    more = rng.random() < 0.5
    if not more:
        a, b = max(a, b) + 1, min(a, b)
    c = a + b if more else a - b
    if lang == "zh":
        verb = rng.choice(("又买了", "又得到", "妈妈又给我")) if more else rng.choice(("吃掉了", "送给朋友", "丢了"))
        verb = verb if thing not in ("铅笔", "球", "气球", "硬币") or verb != "吃掉了" else "丢了"
        end = rng.choice(("现在有几个", "现在有多少个", "一共有几个" if more else "还剩几个"))
        ask = f"我有{a}个{thing}，{verb}{b}个，{end}？"
        return ask, f"{a}{'加' if more else '减'}{b}等于{c}，所以有{c}个{thing}。"
    verb = rng.choice(("get", "buy", "find")) if more else rng.choice(("lose", "give away", "sell"))
    end = rng.choice(("", " now"))
    ask = f"I have {a} {thing} and {verb} {b}{' more' if more else ''}. How many {thing} do I have{end}?"
    return ask, f"{a} {'plus' if more else 'minus'} {b} is {c}, so you have {c} {thing}."


KINDS: tuple[tuple[Callable[[random.Random, str], Turn], float], ...] = (
    (_sum, 10),
    (_word_sum, 2),
    (_compare, 3),
    (_is_bigger, 1.5),
    (_neighbour, 1.5),
    (_parity, 1.5),
    (_count, 1),
    (_largest, 1.5),
    (_double, 1),
    (_story, 2.5),
)


def draw_arithmetic(rng: random.Random, lang: str) -> Talk:
    """Draw a question about numbers, sometimes with a second one after it."""
    makers, weights = zip(*KINDS, strict=True)
    turns = []
    for maker in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2))):
        question, answer = maker(rng, lang)
        turns.append((slip(rng, question, keep="0"), answer))
    return Talk(lang, tuple(turns))
