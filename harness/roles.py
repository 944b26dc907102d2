"""Which model plays which role, and whether the model is fit for the role."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from shim import RoleViolation, Shim
from shim.config.role_checks import check_precision
from shim.model_info import ModelInfo

Role = Literal["producer", "evaluator", "planner", "embedder"]
ROLES: Final[tuple[str, ...]] = get_args(Role)


class Roles:
    """The models of a configuration by role. An object of this class has passed its checks.

    Args:
        models: models without a role are left out.

    Raises:
        RoleViolation: an evaluator has a matrix coarser than Q8_0, or is the same model as a
            producer.
    """

    def __init__(self, models: Iterable[ModelInfo]) -> None:
        self._models = {info.name: info for info in models if info.role is not None}
        for evaluator in self._of("evaluator"):
            check_precision(evaluator.name, evaluator.role, evaluator)
            for producer in self._of("producer"):
                check_different(evaluator, producer)

    @classmethod
    def of(cls, shim: Shim) -> Roles:
        """The roles of a shim's configuration, read from the models' files.

        Raises:
            RoleViolation: as the class.
            BadModelFile: a model's file is missing or damaged.
        """
        named = [name for name, entry in shim.config.models.items() if entry.role is not None]
        return cls(shim.describe(name) for name in named)

    @property
    def unverified(self) -> tuple[str, ...]:
        """Remote evaluators. Their quantization cannot be read from here."""
        return tuple(info.name for info in self._of("evaluator") if info.remote)

    def names(self, role: Role) -> tuple[str, ...]:
        """The names of the models of a role, in the configuration's order; there may be none."""
        return tuple(info.name for info in self._of(role))

    def the(self, role: Role) -> str:
        """The name of the one model of a role.

        Raises:
            RoleViolation: no model or several models have the role.
        """
        names = self.names(role)
        if len(names) != 1:
            raise RoleViolation(
                f"{len(names)} models have the role {role} ({', '.join(names) or 'none'}); "
                "exactly 1 is needed here.",
                hint=f'Give one model role = "{role}".',
                role=role,
                models=list(names),
            )
        return names[0]

    def _of(self, role: Role) -> list[ModelInfo]:
        return [info for info in self._models.values() if info.role == role]


def check_different(evaluator: ModelInfo, producer: ModelInfo) -> None:
    """Refuse an evaluator that has the producer's weights.

    Raises:
        RoleViolation: with both places.
    """
    if evaluator.identity != producer.identity:
        return
    raise RoleViolation(
        f"The evaluator {evaluator.name} and the producer {producer.name} are one model "
        f"({_place(evaluator)} and {_place(producer)}), which would judge its own work.",
        hint=f"Give [models.{evaluator.name}] another model.",
        evaluator=evaluator.name,
        producer=producer.name,
        identity=evaluator.identity,
    )


def _place(info: ModelInfo) -> str:
    return info.identity if info.file is None else str(info.file)
