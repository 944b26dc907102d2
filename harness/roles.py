"""Which model plays which role, and whether the model is fit for the role."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, get_args

from harness.given import a_list, an_object, refused
from harness.on_trace import span
from shim import InvalidRequest, RoleViolation, Shim
from shim.config import Role
from shim.config.role_checks import check_precision
from shim.model_info import ModelInfo

ROLES: Final[tuple[str, ...]] = get_args(Role)


class Roles:
    """The models of a configuration by role. An object of this class has passed its checks.

    Args:
        models: models without a role are left out.
        overrides: evaluators that may be so all the same. `overridden` says why that is, and so does a
            span of the current run's trace.

    Raises:
        RoleViolation: an evaluator has a matrix coarser than Q8_0, or is the same model as a
            producer.
        InvalidRequest: an override is no evaluator.
    """

    def __init__(self, models: Iterable[ModelInfo], overrides: Collection[str] = ()) -> None:
        known = a_list("The models", models, ModelInfo)
        self._models = {info.name: info for info in known if info.role is not None}
        self.overridden = why_overridden(self._of("evaluator"), self._of("producer"), overrides)
        for name, why in self.overridden.items():
            with span("role overridden", model=name, overridden=why):
                pass

    @classmethod
    def of(cls, shim: Shim, overrides: Collection[str] = ()) -> Roles:
        """The roles of a shim's configuration, read from the models' files.

        Raises:
            RoleViolation: as the class.
            InvalidRequest: as the class.
            BadModelFile: a model's file is missing or damaged.
        """
        an_object("`shim`", shim, Shim)
        named = [name for name, entry in shim.config.models.items() if entry.role is not None]
        roles = cls((shim.describe(name) for name in named), overrides)
        shim.override_role(list(roles.overridden))
        return roles

    def __repr__(self) -> str:
        return f"Roles({', '.join(f'{name}: {info.role}' for name, info in self._models.items())})"

    @property
    def unverified(self) -> tuple[str, ...]:
        """Evaluators whose precision cannot be read: remote ones, and those of vLLM."""
        return unread(self._of("evaluator"))

    def names(self, role: Role) -> tuple[str, ...]:
        """The names of the models of a role, in the configuration's order; there may be none."""
        if role not in ROLES:
            raise refused("A role", role, " or ".join(ROLES))
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


def why_overridden(
    evaluators: Sequence[ModelInfo], producers: Sequence[ModelInfo], overrides: Collection[str]
) -> dict[str, str]:
    """Why evaluators may not judge these producers, for those that may all the same.

    Raises:
        RoleViolation: one is coarser than Q8_0 or has a producer's weights, and is no override.
        InvalidRequest: an override is no evaluator.
    """
    names = [one.name for one in evaluators]
    allowed = set(a_list("The overrides", overrides, str))
    if strange := sorted(allowed - set(names)):
        raise InvalidRequest(
            f"{', '.join(strange)} cannot be overridden: no evaluator has that name here.",
            hint=f"The evaluators are: {', '.join(names) or 'none'}.",
        )
    found: dict[str, str] = {}
    for evaluator in evaluators:
        try:
            check_precision(evaluator.name, "evaluator", evaluator)
            for producer in producers:
                _check_different(evaluator, producer)
        except RoleViolation as violation:
            if evaluator.name not in allowed:
                raise
            found[evaluator.name] = str(violation)
    return found


def unread(evaluators: Iterable[ModelInfo]) -> tuple[str, ...]:
    """Those whose precision cannot be read: remote ones, and those of vLLM."""
    return tuple(one.name for one in evaluators if one.min_bits_per_weight is None)


def _check_different(evaluator: ModelInfo, producer: ModelInfo) -> None:
    """Refuse an evaluator that has the producer's weights."""
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
