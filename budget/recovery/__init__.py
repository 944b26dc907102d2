"""What keeps the core whole: impossible events are refused, and a fault inside is put right.

`soundness` checks an event before it changes anything; `balance` checks the tables; `repair` and
`forced_effects` bring about what the event must bring about whatever failed.
"""
