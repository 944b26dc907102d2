"""The slots of a running llama-server: what they hold, saved to files and restored from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from backends.llama.control import control_request
from budget.errors import EndpointError, EngineDied, EngineTimeout, InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Slots:
    """Asks about slots and moves their KV state, over the engine's socket.

    Args:
        socket: where the engine listens.
        model_id: its name in errors.
        timeout_s: until an action is given up.
        carries_kv: whether it has KV state to save at all.
    """

    def __init__(self, socket: Path, model_id: str, timeout_s: float, *, carries_kv: bool) -> None:
        self._socket = socket
        self._model_id = model_id
        self._timeout_s = timeout_s
        self._carries_kv = carries_kv

    async def tokens(self) -> dict[int, int]:
        """The tokens that each slot holds, of the slots that served since the start."""
        _, slots = await control_request(self._socket, "GET", "/slots")
        return {int(s["id"]): int(s["n_prompt_tokens"]) for s in slots if "n_prompt_tokens" in s}

    async def busy(self) -> bool:
        """Whether any slot is processing a request now."""
        _, slots = await control_request(self._socket, "GET", "/slots")
        return any(bool(slot["is_processing"]) for slot in slots)

    async def save(self, slot: int, name: str) -> int:
        """Save a slot's KV state under a name; returns the bytes written.

        Raises:
            InvalidRequest: the engine has none to save, or that is no name.
            EngineTimeout, EngineDied, EndpointError: it does not, cannot or will not.
        """
        return int((await self._act(slot, "save", name))["n_written"])

    async def restore(self, slot: int, name: str) -> int:
        """Restore what `save` saved; returns the tokens restored.

        Raises:
            as `save`.
        """
        return int((await self._act(slot, "restore", name))["n_restored"])

    async def _act(self, slot: int, action: str, name: str) -> Mapping[str, int]:
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
        try:
            status, answer = await control_request(
                self._socket, "POST", target, {"filename": name}, timeout_s=self._timeout_s
            )
        except TimeoutError as exc:
            raise EngineTimeout(
                f"{action} of slot {slot} took over {self._timeout_s:g} s."
            ) from exc
        except OSError as exc:
            raise EngineDied(f"the engine of {self._model_id} does not answer.") from exc
        if status != 200:
            raise EndpointError(
                f"{action} of slot {slot} as {name!r} failed: {answer}.", status=status
            )
        return dict(answer)
