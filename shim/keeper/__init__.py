"""The keeper: one process per user that owns every ledger and every engine, and grants leases.

`locks`, `device_locks` and `holders` say that it is alone, `orders` and `reachable` what lies in its folder
and that it is found there; `catalog` turns a configuration into
engines; `shell` feeds the core events and carries out its actions; `server` listens, `clients` answers
what each client asks in one of the `messages`; `daemon` and `inline` run the keeper, in a process of its
own or inside the caller's.
"""
