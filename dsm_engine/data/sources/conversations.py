"""Messages between a user and an assistant, in the two usual forms, as question and answer."""

from typing import Any, Literal

from dsm_engine.data.example import Block, ExampleFault, parse_solution

SystemPolicy = Literal["error", "omit", "prepend"]
_KEYS = ("messages", "conversations")
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}


def find_messages(record: dict[str, Any]) -> list[Any] | None:
    """The list of messages in a record. Raises ExampleFault where it is none."""
    for key in _KEYS:
        if (messages := record.get(key)) is not None:
            if not isinstance(messages, list):
                raise ExampleFault("bad_value", f"{key!r} is not a list of messages")
            return messages
    return None


def split_messages(
    messages: list[Any], *, system: SystemPolicy = "error"
) -> tuple[str, tuple[Block, ...]]:
    """The question, and the blocks of its answer; a tool's messages are what a program printed.

    Messages are `{"role", "content"}` (OpenAI) or `{"from", "value"}` (ShareGPT). One question is
    expected: ExampleFault where more follow, for an example has one prompt. A system message that
    is not blank is an error, left out or put before the question, as the policy says.
    """
    pairs = [_message(message) for message in messages]
    instructions = [text for role, text in pairs if role == "system" and text.strip()]
    if instructions and system == "error":
        raise ExampleFault(
            "system_message", "there is a system message; choose the option system: omit or prepend"
        )
    pairs = [(role, text) for role, text in pairs if role != "system"]
    if not pairs or pairs[0][0] != "user":
        raise ExampleFault("missing_question", "the first message is not the user's")
    question = pairs[0][1]
    if system == "prepend":
        question = "\n\n".join([*instructions, question])
    blocks: list[Block] = []
    previous = "user"
    for role, text in pairs[1:]:
        if role == "user" or role == previous == "assistant":
            raise ExampleFault("several_turns", "there is more than one question and answer")
        blocks += parse_solution(text) if role == "assistant" else [Block(kind="output", text=text)]
        previous = role
    return question, tuple(blocks)


def message_text(content: Any) -> str:
    """The text of a message, whole or in parts. Raises ExampleFault where it is none."""
    if isinstance(content, list):
        return "".join(_part_text(part) for part in content)
    if not isinstance(content, str):
        raise ExampleFault("bad_value", "a message has no text")
    return content


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise ExampleFault("bad_value", "a message is not an object")
    name = message.get("role", message.get("from"))
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ExampleFault("bad_value", f"a message is of the role {name!r:.80}")
    return role, message_text(message.get("content", message.get("value")))


def _part_text(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise ExampleFault("bad_value", "a part of a message is not text")
    return message_text(part.get("text", part.get("content")))
