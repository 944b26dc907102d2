"""The slots of a running llama-server: their tokens, and saving and restoring their KV state."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import SlotSigns
from backends.machine.unix_http import ANSWER_LIMIT_S, control_request
from budget.errors import EndpointError, EngineDied, EngineTimeout, InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Slots:
    """Asks about slots and moves their KV state, over the engine's socket.

    Args:
        socket: where the engine listens.
        model_id: its name in errors.
        timeout_s: the bound of an action.
        carries_kv: whether the model has KV state to save at all.
    """

    def __init__(self, socket: Path, model_id: str, timeout_s: float, *, carries_kv: bool) -> None:
        self._socket = socket
        self._model_id = model_id
        self._timeout_s = timeout_s
        self._carries_kv = carries_kv

    async def rows(self, timeout_s: float = ANSWER_LIMIT_S) -> list[dict[str, Any]]:
        """The engine's row of each slot.

        Raises:
            EngineTimeout, EngineDied, EndpointError: it does not answer in time, or with other data.
        """
        status, rows = await self._ask("GET", "/slots", timeout_s=timeout_s)
        if (
            status != 200
            or not isinstance(rows, list)
            or not all(isinstance(r, dict) for r in rows)
        ):
            raise EndpointError(f"{self._model_id} does not report its slots.", status=status)
        return rows

    async def tokens(self) -> dict[int, int]:
        """The number of tokens in each slot that served since the start.

        Raises:
            as `rows`.
        """
        return {
            row["id"]: row["n_prompt_tokens"]
            for row in await self.rows()
            if isinstance(row.get("id"), int) and isinstance(row.get("n_prompt_tokens"), int)
        }

    async def save(self, slot: int, name: str) -> int:
        """Save a slot's KV state under a name; returns the bytes written.

        Raises:
            InvalidRequest: the model has no state to save, or the name is not allowed.
            EngineTimeout, EngineDied, EndpointError: the engine does not answer, or refuses.
        """
        return _number(await self._act(slot, "save", name), "n_written")

    async def restore(self, slot: int, name: str) -> int:
        """Restore a slot that `save` saved; returns the number of restored tokens.

        Raises:
            as `save`.
        """
        return _number(await self._act(slot, "restore", name), "n_restored")

    async def _act(self, slot: int, action: str, name: str) -> Mapping[str, Any]:
        if not self._carries_kv:
            raise InvalidRequest(
                f"{self._model_id} has no KV state to {action}: it embeds, or does not keep all of it."
            )
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name!r} is not a name for saved KV state.",
                hint="Use up to 128 letters, digits, dots, dashes and underscores.",
            )
        target = f"/slots/{slot}?action={action}"
        status, answer = await self._ask(
            "POST", target, {"filename": name}, timeout_s=self._timeout_s
        )
        if status != 200 or not isinstance(answer, dict):
            raise EndpointError(
                f"{action} of slot {slot} as {name!r} failed: {answer}.", status=status
            )
        return answer

    async def _ask(
        self,
        method: str,
        target: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float,
    ) -> tuple[int, Any]:
        try:
            return await control_request(self._socket, method, target, body, timeout_s=timeout_s)
        except TimeoutError as exc:
            raise EngineTimeout(
                f"{self._model_id} did not answer {method} {target} within {timeout_s:g} s."
            ) from exc
        except OSError as exc:
            raise EngineDied(f"the engine of {self._model_id} does not answer.") from exc


def _number(answer: Mapping[str, Any], key: str) -> int:
    value = answer.get(key)
    if not isinstance(value, int):
        raise EndpointError(f"the engine's answer has no number {key}: {answer}.")
    return value


def slot_signs(slots: Sequence[Mapping[str, Any]]) -> SlotSigns:
    """The rows of `/slots` as one report on all slots.

    While a batch of a prompt is computed (2,048 tokens) its slot's row stays as it is. A slot that waits
    until its caller reads is not stuck, so that it does not count as busy here.
    """
    busy = [slot for slot in slots if slot.get("is_processing") and not slot.get("is_unread")]
    moved = tuple(
        (
            _count(slot, "id_task"),
            _count(slot, "n_prompt_tokens"),
            _count(slot, "n_prompt_tokens_processed"),
            _decoded(slot),
        )
        for slot in slots
    )
    return SlotSigns(len(busy), any(_decoded(slot) == 0 for slot in busy), moved)


def _count(slot: Mapping[str, Any], key: str) -> int:
    value = slot.get(key)
    return value if isinstance(value, int) else 0


def _decoded(slot: Mapping[str, Any]) -> int:
    following = slot.get("next_token")
    row = following[0] if isinstance(following, list) and following else following
    return _count(row, "n_decoded") if isinstance(row, Mapping) else 0
