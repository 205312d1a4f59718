"""Tools of an environment: what the model is told of them, what it asks for, what it gets.

A call is written in the form of Hermes, which Qwen and many others are taught:
<tool_call>{"name": ..., "arguments": {...}}</tool_call>. A call that cannot be read, an unknown
tool and a tool that raises are the model's to mend: it is told, and the episode goes on.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from cero_rl.environments.marks import Method, marked

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    arguments: type[BaseModel]  # one field a parameter
    method: Method

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates and OpenAI's interface take it."""
        parameters = self.arguments.model_json_schema()
        parameters.pop("title", None)
        for each in parameters.get("properties", {}).values():
            each.pop("title", None)
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
        }
        return {"type": "function", "function": function}

    async def call(self, arguments: Any) -> str:
        """The tool's answer as text; what goes wrong, in words."""
        try:
            given = self.arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return f"error: {self.name}: {where}: {first['msg']}" if where else str(first["msg"])
        try:
            result = self.method(
                **{name: getattr(given, name) for name in type(given).model_fields}
            )
            if inspect.isawaitable(result):
                result = await result
        except MemoryError:
            raise
        except Exception as error:
            return f"error: {self.name}: {error or type(error).__name__}"
        return result if isinstance(result, str) else json.dumps(result, default=str)


def tools_of(instance: object) -> dict[str, Tool]:
    """The methods marked as tools, by the name that the model knows."""
    tools = {}
    for method in marked(instance, "tool"):
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(method, eval_str=True).parameters.items():
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (kind, default)
        name = getattr(method, "tool_name", None) or method.__name__
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        tools[name] = Tool(name, inspect.cleandoc(method.__doc__ or ""), model, method)
    return tools


def calls_in(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(the text before its calls, the calls as messages carry them). What stands in a call and is
    no JSON is a call of the name "", with the text as its argument."""
    calls: list[dict[str, Any]] = []
    for number, match in enumerate(_CALL.finditer(text)):
        name, arguments = "", match[1].strip()
        try:
            asked = json.loads(match[1])
            name, arguments = str(asked["name"]), asked.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        function = {"name": name, "arguments": arguments}
        calls.append({"id": f"call_{number}", "type": "function", "function": function})
    return (text[: text.index("<tool_call>")].strip() if calls else text), calls


async def answer(tools: Mapping[str, Tool], call: Mapping[str, Any]) -> dict[str, Any]:
    """The message of role tool that answers a call."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if name in tools:
        content = await tools[name].call(arguments)
    elif name:
        content = f"error: there is no tool {name}; there is {', '.join(tools)}"
    else:
        content = "error: the call is no JSON object with a name and arguments"
    return {"role": "tool", "tool_call_id": call["id"], "name": name, "content": content}
