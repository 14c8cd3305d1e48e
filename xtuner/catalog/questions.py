"""Texts of the recipe book: what is asked while training, by subject, and the system text of the tool data."""

from collections.abc import Mapping

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "chat": ("请推荐三本值得一读的书", "Please recommend three books worth reading"),
    "pretrain": ("今天的天气", "The weather today"),
    "code": (
        "写一个 Python 函数，判断一个整数是不是质数，并说明它的时间复杂度。",
        "Write a Python function that tells whether an integer is prime, and say how long it takes.",
    ),
    "arxiv": (
        "We study how the order of examples changes what a small language model learns. Training on short examples "
        "first saves a third of the steps at equal loss, and the gain grows with the length of the longest examples.",
        "A method is presented that finds the stable orbits of three bodies by gradient descent on a discretised "
        "action. It recovers known families of orbits and finds forty that were not known before.",
    ),
    "colour": ("请给我一种像秋天枫叶一样温暖的红色。", "Please give me a deep green like moss after the rain."),
    "law": ("租房合同没有到期，房东可以让我搬走吗？", "公司拖欠工资，我应该怎么办？"),
    "medicine": ("我最近总是睡不好，白天没有精神，该怎么办？", "感冒的时候可以运动吗？"),
    "sql": (
        "CREATE TABLE book (title VARCHAR, author VARCHAR, pages INTEGER)\nWhich authors have written a book of more "
        "than 500 pages?",
        "CREATE TABLE visit (day DATE, city VARCHAR, guests INTEGER)\nHow many guests came to each city in total?",
    ),
    "picture": ("请描述这张照片", "Please describe this picture"),
    "search": ("上海明天会下雨吗？",),
}

PICTURE = "https://llava-vl.github.io/static/images/view.jpg"

AGENT = (
    "你可以先想一想，再决定是否使用工具。需要外部信息时，请写出工具的名字和参数，"
    "等看到工具返回的结果后，再给出最终的回答。你有这些工具："
    '{{"name": "search", "description": "在网上搜索", "parameters": [{{"name": "query", "type": "string"}}]}}'
)
