"""The shell around the core: `events_in` is the only way in, `actions_out` carries out what it decides.

Every action ends as an event (`owed_events`, `failed_actions`), every recurring task is supervised
(`background`), and what went wrong is counted (`fault_counts`).
"""
