"""Every kind of fault of the campaign."""

from __future__ import annotations

from collections.abc import Callable

from campaign import file_faults as files
from campaign import load_faults as loads
from campaign import process_faults as processes
from campaign.place import Place

Kind = Callable[[Place], bool]

PROCESSES: tuple[Kind, ...] = (
    processes.engine_killed,
    processes.engine_aborted,
    processes.engine_crashed,
    processes.engine_asked_to_end,
    processes.engine_stopped,
    processes.engine_frozen,
    processes.engine_slowed,
    processes.engine_socket_removed,
    processes.keeper_killed,
    processes.keeper_ended,
    processes.keeper_frozen,
    processes.keeper_stopped,
    processes.keeper_socket_removed,
    processes.keeper_path_taken,
    processes.runtime_folder_removed,
    processes.caller_killed,
    processes.caller_frozen,
    processes.caller_cancelled,
    processes.caller_forked,
    processes.clock_stepped,
    processes.configuration_reloaded,
    processes.model_unloaded,
    processes.descriptors_gone,
    processes.keeper_out_of_memory,
    processes.connection_garbled,
)
FILES: tuple[Kind, ...] = (
    files.model_touched,
    files.model_truncated,
    files.model_deleted,
    files.model_replaced,
    files.model_garbled,
    files.no_file_grows,
    files.kv_disk_full,
    files.state_disk_full,
    files.trace_disk_full,
    files.disk_slow,
)
LOADS: tuple[Kind, ...] = (
    loads.load_out_of_memory,
    loads.load_killed,
    loads.load_of_truncated_file,
    loads.load_of_replaced_file,
    loads.engine_path_taken,
    loads.server_port_taken,
    loads.worker_code_raises,
    loads.worker_code_dies,
    loads.worker_code_hangs,
    loads.worker_code_litters,
    loads.worker_cannot_load,
    loads.server_closes_unanswered,
    loads.server_answers_half,
    loads.server_events_malformed,
    loads.server_fails,
    loads.server_does_not_start,
)
KINDS = (*PROCESSES, *FILES, *LOADS)

LONG: frozenset[Kind] = frozenset(
    {
        processes.engine_stopped,
        processes.engine_slowed,
        processes.keeper_stopped,
        processes.runtime_folder_removed,
        processes.configuration_reloaded,
        files.disk_slow,
        loads.worker_code_hangs,
        loads.worker_cannot_load,
        loads.server_does_not_start,
    }
)
"""Kinds that take seconds, or that clients wait for until a bound is reached."""
RARE: dict[Kind, float] = {processes.keeper_stopped: 0.15, processes.runtime_folder_removed: 0.5}
"""How often a kind that takes very long is really done when it is drawn."""
