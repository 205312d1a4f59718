"""Chat rows with more than text: content in parts, tools, tool calls, and a response that has
begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_encode import tokenizer

from cero_rl.config.data import DataConfig
from cero_rl.data.encode import encode_prompts
from cero_rl.data.load import load_prompts
from cero_rl.data.prompts import Prompt, question_hash
from cero_rl.errors import DataError

PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {"name": "add_up", "parameters": {"type": "object", "properties": {}}},
}
CALLED = [
    {"role": "user", "content": "1+1?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "add_up", "arguments": '{"a": 1, "b": 1}'}}
        ],
    },
    {"role": "tool", "name": "add_up", "tool_call_id": "1", "content": "2"},
]


def load(tmp_path: Path, *rows: dict[str, Any]) -> list[Prompt]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"answer": "2", **row}) + "\n" for row in rows))
    return list(load_prompts(DataConfig(source=str(path), heldout_fraction=0), 0).train)


def rendered(prompt: Prompt, template: str, **options: Any) -> str:
    tok = tokenizer(template)
    data = DataConfig(source="x", **options)
    given: list[str] = []
    encode = tok.encode

    def watched(text: Any, *rest: Any, **more: Any) -> Any:
        given.append(text)
        return encode(text, *rest, **more)

    tok.encode = watched  # type: ignore[method-assign]
    encode_prompts([prompt], tok, data)
    return given[0]


def test_a_response_that_has_begun_is_gone_on_with(tmp_path: Path) -> None:
    (prompt,) = load(
        tmp_path,
        {
            "prompt": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "<think>Let"},
            ]
        },
    )
    assert rendered(prompt, PLAIN) == "<user>hi<|end|><assistant><think>Let"
    assert rendered(prompt, PLAIN, prompt_suffix="!") == "<user>hi!<|end|><assistant><think>Let"
    assert rendered(prompt, PLAIN, chat_template="never") == "hi\n\n<think>Let"
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*the response's beginning"):
        rendered(
            prompt, "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
        )


def test_tools_and_calls_reach_the_template(tmp_path: Path) -> None:
    with_tools, called, as_text = load(
        tmp_path,
        {"prompt": [{"role": "user", "content": "1+1?"}], "tools": [TOOL]},
        {"prompt": CALLED, "tools": None},
        {"prompt": [{"role": "user", "content": "2+2?"}], "tools": json.dumps([TOOL])},
    )
    assert '"name": "add_up"' in rendered(with_tools, WITH_TOOLS)
    assert with_tools.tools == as_text.tools == [TOOL]
    text = rendered(called, WITH_TOOLS)
    assert '"arguments": {"a": 1, "b": 1}' in text, "a mapping, as templates want it"
    assert text.endswith("<tool>2<|end|><assistant>")
    (plain,) = load(tmp_path, {"prompt": [{"role": "user", "content": "1+1?"}]})
    assert question_hash(plain) != question_hash(with_tools)
    assert plain.key != with_tools.key


@pytest.mark.covers("tools that the model would not see")
@pytest.mark.parametrize("row", [{"prompt": CALLED}, {"prompt": CALLED[:1], "tools": [TOOL]}])
def test_tools_that_the_model_would_not_see_are_refused(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (prompt,) = load(tmp_path, row)
    with pytest.raises(DataError, match=r"rows.jsonl:1: the chat template leaves out the tool"):
        rendered(prompt, PLAIN)
    with pytest.raises(DataError, match=r"rows.jsonl:1 has tools, which only a chat template"):
        rendered(prompt, WITH_TOOLS, chat_template="never")


def test_a_column_of_that_name_that_is_no_schema_is_the_rewards_own(tmp_path: Path) -> None:
    for value in (["hammer"], "hammer", 3, [], None, {"a": 1}):
        (prompt,) = load(tmp_path, {"prompt": "q", "tools": value})
        assert prompt.tools is None
        assert prompt.columns["tools"] == value


def test_parts_of_text_are_joined_and_nulls_of_columnar_files_go(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": "b"}]
    (prompt,) = load(
        tmp_path, {"prompt": [{"role": "user", "content": parts, "tool_calls": None, "name": None}]}
    )
    assert prompt.messages == ({"role": "user", "content": "ab"},)


@pytest.mark.covers("prompts of the wrong type")
@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "a content part of type 'image_url'",
        ),
        ({"prompt": [{"role": "user"}]}, "holds the message"),
        ({"prompt": [{"role": "user", "content": None}]}, "holds the message"),
        ({"prompt": [{"role": 3, "content": "x"}]}, "holds the message"),
        ({"prompt": [{"role": "assistant", "tool_calls": ["add"]}]}, "holds tool_calls"),
        ({"prompt": [{"role": "user", "content": "x"}], "tools": [{"a": 1}]}, "column 'tools'"),
    ],
)
def test_messages_of_another_form_are_named_with_their_row(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, {"prompt": "fine"}, row)
    assert "rows.jsonl:2: " in str(caught.value)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_chat_that_ends_in_a_call_is_refused(tmp_path: Path) -> None:
    (prompt,) = load(tmp_path, {"prompt": CALLED[:2]})
    with pytest.raises(DataError, match="ends in a tool call"):
        rendered(prompt, WITH_TOOLS)
