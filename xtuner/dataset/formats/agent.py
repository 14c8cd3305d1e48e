"""Owns the MSAgent format: conversations with tool calls in marks, told in ReAct form (https://arxiv.org/abs/2210.03629)."""

import ast
import json
from collections.abc import Sequence
from typing import Any

from xtuner.conversation.message import Conversation, Message
from xtuner.dataset.row import BadRow, Row, to_text

THINK, END_THINK = "<|startofthink|>", "<|endofthink|>"
EXEC, END_EXEC = "<|startofexec|>", "<|endofexec|>"


def msagent_react(row: Row) -> Conversation:
    """Read `conversations` of {from: system | user | assistant, value}, given as a list or as the text of one.

    A tool's response becomes the system text of a further turn, as 0.1.x had it.
    """
    listed = row.get("conversations")
    if isinstance(listed, str):
        try:
            listed = ast.literal_eval(listed)
        except (ValueError, SyntaxError) as error:
            raise BadRow("conversations is not a list") from error
    if not isinstance(listed, Sequence) or len(listed) < 2:
        raise BadRow("fewer than two messages")
    messages: Conversation = []
    for item in listed:
        if not isinstance(item, dict):
            raise BadRow("a message is not an object")
        speaker, value = item.get("from"), to_text(item.get("value"), "value")
        if speaker == "system":
            tools = _tools(value)
            if tools:
                messages.append(Message("system", tools))
        elif speaker == "user":
            messages.append(Message("user", value + "\n"))
        elif speaker == "assistant":
            messages += _steps(value)
        else:
            raise BadRow(f"a message of the role {speaker}")
    if not any(message.role == "assistant" for message in messages):
        raise BadRow("no assistant turn")
    return messages


def _steps(value: str) -> Conversation:
    """Take an assistant's text apart at the tool responses inside it."""
    first, *rest = value.split(EXEC)
    messages = [Message("assistant", _speech(first))]
    for part in rest:
        response, _, speech = part.partition(END_EXEC)
        messages.append(Message("system", f"Response:{_object(response)}\n"))
        messages.append(Message("assistant", _speech(speech)))
    return messages


def _speech(value: str) -> str:
    if THINK not in value:
        return f"Final Answer:{value.strip()}\n"
    thought, _, rest = value.partition(THINK)
    call, _, after = rest.partition(END_THINK)
    action = _object(call)
    if not isinstance(action, dict) or "api_name" not in action:
        raise BadRow("a tool call without api_name")
    return f"Thought:{thought.strip()}\nAction:{action['api_name']}\nAction Input:{action.get('parameters')}\n{after}\n"


def _object(fenced: str) -> Any:
    """Read the JSON between ```JSON and ```."""
    body = fenced.strip().removeprefix("```").removesuffix("```").strip()
    if body[:4].lower() == "json":
        body = body[4:]
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadRow("JSON of a tool cannot be read") from error


def _tools(value: str) -> str:
    """Describe the tools whose JSON objects stand in a system text; an empty text when there are none."""
    decoder = json.JSONDecoder()
    described: list[str] = []
    names: list[str] = []
    at = value.find("{")
    while at >= 0:
        try:
            tool, end = decoder.raw_decode(value, at)
        except ValueError:
            tool, end = None, at + 1
        if isinstance(tool, dict) and "name" in tool and "description" in tool:
            paths = tool.get("paths") or [{}]
            parameters = [
                f"{item.get('name')}: {item.get('description')}"
                for item in (paths[0].get("parameters") or [] if isinstance(paths[0], dict) else [])
                if isinstance(item, dict)
            ]
            names.append(str(tool["name"]))
            described.append(f"{tool['name']}: {tool['description']} 参数: {'; '.join(parameters) or '无'}")
        at = value.find("{", end)
    if not names:
        return ""
    listing = "\n".join(described)
    return (
        f"你可以使用下列工具：\n{listing}\n"
        "需要使用工具时，请按这样的格式回答：\n"
        "Thought:你对下一步的思考\n"
        f"Action:工具的名称，只能是 [{', '.join(names)}] 之一\n"
        "Action Input:交给工具的参数\n"
        "工具的结果会写在 Response: 之后。知道答案以后，请这样回答：\n"
        "Final Answer:最终的答案\n"
        "现在开始！\n"
    )
