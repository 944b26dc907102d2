"""The engines that run: loaded, watched, measured and ended.

`supervisor` has them all, `loading` begins one, `ending` ends one; `liveness`, `stall_detection` and
`monitor` see that each gets on and takes what was booked.
"""
