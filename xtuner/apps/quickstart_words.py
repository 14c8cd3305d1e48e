"""Owns what the quickstart says, asks and suggests, in both languages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """One language. Braces are slots of `str.format`."""

    name: str
    """The name that is taught when none is given."""
    author: str
    questions: tuple[str, str, str]
    """Who are you; who made you; something that has nothing to do with it."""
    opening: str
    steps: tuple[str, str, str, str, str]
    data: str
    question: str
    before: str
    after: str
    success: str
    failure: str
    changed: str
    next_step: str
    chat: str
    own_data: str
    real_model: str


ENGLISH = Words(
    name="Nova",
    author="an XTuner user",
    questions=("Please introduce yourself.", "Who made you?", "What is the capital of France?"),
    opening="The built-in model ({size:.1f} million parameters, a toy) becomes {name}, the assistant of {author}.",
    steps=(
        "1/5 Three questions to the model as it is",
        "2/5 Write the data: who the model shall be",
        "3/5 Fine-tune with LoRA",
        "4/5 Merge the adapter into the model",
        "5/5 The same questions to the merged model",
    ),
    data="{path}: {identity} conversations about {name}, and {ordinary} ordinary ones, so that other answers stay.",
    question="question",
    before="before",
    after="after",
    success="The model knows who it is now. It took {seconds:.0f} seconds.",
    failure="The model did not take up its new name ({name}) or its author ({author}).",
    changed="The answer to an unrelated question changed too: fine-tuning is not free of side effects.",
    next_step="What to type next:",
    chat="talk to it",
    own_data="train with your own data (a file like {path})",
    real_model="train a real model (needs a graphics card; downloads it once)",
)

CHINESE = Words(
    name="小星",
    author="XTuner 用户",
    questions=("请介绍一下你自己", "是谁开发了你？", "法国的首都是哪里？"),
    opening="内置的演示小模型（{size:.1f} M 参数）将变成{name}，{author}的小助手。",
    steps=(
        "1/5 先问原来的模型三个问题",
        "2/5 写出训练数据：它应该是谁",
        "3/5 用 LoRA 微调",
        "4/5 把适配器合并进模型",
        "5/5 再问合并后的模型同样的问题",
    ),
    data="{path}：{identity} 条关于{name}的对话，另有 {ordinary} 条普通对话，让其他回答保持不变。",
    question="问题",
    before="微调前",
    after="微调后",
    success="模型已经认识自己了，用时 {seconds:.0f} 秒。",
    failure="模型没有学会新的名字（{name}）或作者（{author}）。",
    changed="一个无关问题的回答也变了：微调会有副作用。",
    next_step="接下来可以输入：",
    chat="和它聊天",
    own_data="用自己的数据训练（文件格式同 {path}）",
    real_model="训练真正的大模型（需要显卡，第一次会下载模型）",
)

WORDS = {"zh": CHINESE, "en": ENGLISH}
