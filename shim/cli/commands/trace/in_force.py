"""The configuration in force, as the advice of `keepwarm trace summary` needs it."""

from __future__ import annotations

from shim.config import FILE_NAME, Config, ModelEntry
from shim.config.schema.kind_keys import keys_of
from traces.reading.advice import AdvisedConfig, AdvisedModel, TraceAdvice, section_of


def in_force(config: Config) -> AdvisedConfig:
    """What advice has to know of a configuration."""
    loads_ahead = config.budget.prefetch in (True, "spare")
    return AdvisedConfig(loads_ahead, {name: _model(one) for name, one in config.models.items()})


def file_of(advice: TraceAdvice, config: Config) -> str:
    """Where a section is to be found. The run may have had another configuration than the one in force."""
    here, own = config.file or FILE_NAME, set(map(section_of, config.models))
    if not advice.section.startswith("[models.") or not own or advice.section in own:
        return str(here)
    return f"the run's configuration ({here} has no such model)"


def _model(entry: ModelEntry) -> AdvisedModel:
    keys = keys_of(entry.backend, remote=entry.remote)
    written = "context" in keys and "context" in entry.model_fields_set
    return AdvisedModel(
        slots=int(entry.slots),
        context=int(entry.context) if written else None,
        pinned=entry.pinned,
        can_slots="slots" in keys,
        can_pin="pin" in keys,
    )
