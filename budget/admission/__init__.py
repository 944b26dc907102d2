"""Which engine gets bytes, and when.

`scheduler` is the pump that runs after every event; `admission` finds the placement an engine gets now;
`fits` knows which placements can ever fit; `prefetch` loads ahead; `preemption` interrupts answers;
`refusals` has the errors that end a request.
"""
