"""Who holds which bytes, who waits, and what was declared: the core's tables.

`ledger` has the bytes of a device, `residents` moves them with each engine's state (`states`),
`queue` has the requests that wait, `claims` the bytes that are coming free.
"""
