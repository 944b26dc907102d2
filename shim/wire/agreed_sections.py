"""The sections that a client and its keeper share: what the client wrote in them has to hold.

A device has one budget, whichever programs use it. A key that a configuration leaves out claims nothing,
so it agrees with every keeper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from budget.errors import ConfigError
from shim.config import BudgetSection, Config
from shim.wire.fingerprint import fields_of, label_of

Difference = tuple[str, str]
"""The client's value of a key, and the keeper's."""

_OF_DEVICES: Final = frozenset({"device", "devices", "limit", "reserve"})
_LEFT_OUT: Final = "left out"


def sections_said(config: Config) -> dict[str, Any]:
    """The `[budget]` and `[keeper]` of a configuration as the keeper tells them to its clients."""
    budget = config.budget
    said = fields_of(budget, BudgetSection.model_fields.keys() - _OF_DEVICES)
    said["devices"] = [
        [
            share.device,
            str(share.limit or budget.limit),
            str(share.reserve or budget.reserve or _LEFT_OUT),
        ]
        for share in budget.shares
    ]
    return {"budget": said, "keeper": fields_of(config.keeper, type(config.keeper).model_fields)}


def differing(config: Config, said: Mapping[str, Any]) -> dict[str, Difference]:
    """The keys that a client wrote and that the keeper has otherwise, by dotted key."""
    found = dict(_written(config, "budget", said["budget"], _OF_DEVICES))
    found |= _written(config, "keeper", said["keeper"], frozenset())
    found |= _devices(config.budget, said["budget"]["devices"])
    return dict(sorted(found.items()))


def differs(found: Mapping[str, Difference], mine: Config, keepers: str) -> ConfigError:
    """The error of a client whose `[budget]` differs from the keeper's.

    Args:
        found: what differs.
        mine: the client's configuration.
        keepers: the label of the keeper's.
    """
    file = label_of(mine)
    if file == keepers:
        what = "; ".join(
            f"{key} is {ours} now, and was {theirs} when the keeper read it"
            for key, (ours, theirs) in found.items()
        )
    else:
        what = "; ".join(
            f"{key} is {ours} in {file}, and {theirs} in {keepers}"
            for key, (ours, theirs) in found.items()
        )
    return ConfigError(
        f"The running keeper's [budget] differs from this program's: {what}.",
        hint="A device has one budget for all programs: write the same in both files, or leave the keys "
        "out of one. `keepwarm config reload` makes the keeper take those of the configuration in effect "
        "here; models stay warm.",
        differ=list(found),
        mine={key: ours for key, (ours, _) in found.items()},
        keepers={key: theirs for key, (_, theirs) in found.items()},
        file=file,
        keepers_file=keepers,
    )


def _written(
    config: Config, section: str, said: Mapping[str, Any], apart: frozenset[str]
) -> Iterator[tuple[str, Difference]]:
    table = getattr(config, section)
    for key, ours in fields_of(table, table.model_fields_set - apart).items():
        if key not in said or said[key] != ours:
            yield f"{section}.{key}", (str(ours), str(said.get(key, "unknown to it")))


def _devices(budget: BudgetSection, theirs: list[list[str]]) -> Iterator[tuple[str, Difference]]:
    written = budget.model_fields_set
    named = bool(written & {"device", "devices"})
    names, keepers = [share.device for share in budget.shares], [row[0] for row in theirs]
    if named and names != keepers:
        yield "budget.device", (", ".join(names), ", ".join(keepers))
        return
    shares = budget.shares if named else [budget.shares[0]] * len(theirs)
    for share, (device, *amounts) in zip(shares, theirs, strict=True):
        for key, amount in zip(("limit", "reserve"), amounts, strict=True):
            ours = getattr(share, key) if named else None
            if ours is None and key in written:
                ours = getattr(budget, key)
            if ours is not None and str(ours) != amount:
                where = f"budget.{key}" if len(theirs) == 1 else f"budget.{key} of {device}"
                yield where, (str(ours), amount)
