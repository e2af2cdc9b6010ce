"""What transformers makes of conversations: chats.py OUT.json TEMPLATE.jinja ...

Writes, for each template, its text and what apply_chat_template gives for each of the conversations below, or that it refuses.
Halfbyte's side is crates/data/examples/templates.rs; `cargo xtask chats` runs both.
"""

import itertools
import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}

TEXTS = [
    "What is the capital of France?",
    "  Spaces around, and a line end \n",
    "Ünïcödé 漢字 🙂 <tag> & \"quotes\" 'single' {{ braces }} {% no %} \\ back",
    "",
    "def f(x):\n    return x  # code\n\n\n",
    "1",
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a place — now.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "A town"},
                    "days": {"type": "integer", "description": "How many", "default": 1.5},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["place"],
            },
        },
    }
]


def says(role, content, **more):
    return {"role": role, "content": content, **more}


def calls(arguments):
    return says("assistant", "", tool_calls=[{"type": "function", "id": "abcdef123", "function": {"name": "weather", "arguments": arguments}}])


def conversations():
    """Pairs of messages and tools."""
    for system, first in itertools.product([None, "Be brief.", "", "  Padded  \n"], TEXTS):
        before = [] if system is None else [says("system", system)]
        yield before + [says("user", first)], None
        yield before + [says("user", first), says("assistant", "Paris.")], None
    for a, b in itertools.product(TEXTS, TEXTS):
        yield [says("user", "Hi"), says("assistant", a), says("user", b), says("assistant", a + "!")], None
    thought = "<think>\nFirst,  the sea.\n</think>\n\nThe answer is 4."
    yield [says("user", "2+2?"), says("assistant", thought)], None
    yield [says("user", "2+2?"), says("assistant", thought), says("user", "3+3?"), says("assistant", thought)], None
    yield [says("user", "2+2?"), says("assistant", "4", reasoning_content="It is\nsimple.")], None
    yield [says("user", "2+2?"), says("assistant", "4", reasoning_content="a"), says("user", "3?"), says("assistant", "6", reasoning_content="b")], None
    for arguments in [{"place": "Zürich", "days": 3, "x": [1.0, None, True]}, '{"place": "Rome"}']:
        call = [says("user", "Weather?"), calls(arguments), says("tool", '{"sky": "clear"}', name="weather", tool_call_id="abcdef123")]
        yield call, TOOLS
        yield call + [says("assistant", "It is clear.")], TOOLS
        yield [says("system", "Use tools.")] + call + [says("assistant", "Clear."), says("user", "Thanks"), says("assistant", "Welcome.")], TOOLS
    yield [says("user", "Hello")], TOOLS
    parts = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]
    yield [says("user", parts), says("assistant", [{"type": "text", "text": "Three."}])], None
    yield [says("system", "S"), says("system", "T"), says("user", "u")], None
    yield [says("user", "a"), says("user", "b"), says("assistant", "c")], None
    yield [says("assistant", "I begin."), says("user", "u"), says("assistant", "c")], None
    yield [says("user", "u"), says("assistant", "a"), says("assistant", "b")], None
    yield [says("narrator", "x"), says("user", "u")], None


def rendered(source, messages, tools, prompt):
    try:
        texts, _ = render_jinja_template(conversations=[messages], tools=tools, chat_template=source, add_generation_prompt=prompt, **TOKENS)
        return {"text": texts[0]}
    except Exception as error:  # a template may raise anything
        return {"error": str(error)[:300]}


def main():
    out, paths = sys.argv[1], sys.argv[2:]
    found = []
    for path in paths:
        with open(path, encoding="utf-8") as file:
            source = file.read()
        cases = []
        for messages, tools in conversations():
            for prompt in [False, True]:
                case = {"messages": messages, "tools": tools, "add_generation_prompt": prompt}
                cases.append(case | rendered(source, messages, tools, prompt))
        found.append({"template": path, "source": source, "tokens": TOKENS, "cases": cases})
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file, ensure_ascii=False)


if __name__ == "__main__":
    main()
