"""The core's tables: bytes by holder, requests that wait, pins, and declared uses.

`ledger` has the bytes of a device, `residents` moves them with each engine's state (`states`),
`queue` has the requests that wait, `claims` the bytes that are coming free.
"""
