"""Messages as a prompt: the model's own chat template, rendered as Transformers renders it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.llama.binding.native_model import NativeModel, Refused
from backends.llama.chat_template import CHATML

_TEMPLATE = "tokenizer.chat_template"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the answer for training, and says nothing here."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> Any:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Prompts:
    """Writes prompts for one model.

    Args:
        model: the model, whose file has the template.
    """

    def __init__(self, model: NativeModel) -> None:
        self.template = model.metadata(_TEMPLATE) or CHATML
        self._bos, self._eos = model.special("bos"), model.special("eos")
        self._adds_bos = model.adds("bos")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._compiled: jinja2.Template | None = None
        self._environment = environment

    def prompt(self, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
        """The prompt of some messages. `given` are further variables of the template.

        Raises:
            Refused: the template refuses them, or is not well-formed.
        """
        try:
            if self._compiled is None:
                self._compiled = self._environment.from_string(self.template)
            text = self._compiled.render(
                messages=[_with_text(message) for message in messages],
                bos_token=self._bos,
                eos_token=self._eos,
                add_generation_prompt=True,
                **given,
            )
        except Refused:
            raise
        except Exception as error:  # a template may raise anything
            raise Refused(f"the chat template failed: {error}"[:2000]) from None
        if self._adds_bos and self._bos:
            text = text.removeprefix(self._bos)
        return text


def _with_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its parts joined to one text, which is all that a text model reads."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    if any(part.get("type") != "text" for part in content):
        raise Refused("image input is not supported: the worker over llama-cpp-python reads text")
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise Refused(message)


def _now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)
