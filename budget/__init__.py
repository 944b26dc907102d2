"""The decisions: which models stay resident, on which device, in how many bytes, and which requests wait.

Pure: standard library and numpy only; no I/O, no clock, no threads, no asyncio, no logging.
Events go in through one mutator, `BudgetCore.handle(event, now)`, and actions come out.
"""
