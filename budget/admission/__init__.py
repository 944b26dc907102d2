"""Who gets bytes, and when.

`scheduler` is the pump that runs after every event; `admission` finds the placement an engine gets now;
`fits` knows what can ever be; `prefetch` looks ahead; `preemption` interrupts; `refusals` says no.
"""
