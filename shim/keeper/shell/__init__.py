"""The shell around the core: `events_in` is the only way in, `actions_out` carries out its actions.

Every action ends as an event (`owed_events`, `failed_actions`), every recurring task is supervised
(`background`), and faults are counted (`fault_counts`).
"""
