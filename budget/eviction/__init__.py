"""Which engines leave: a policy gives each a loss, and the set of least loss that frees enough goes.

`victims` chooses the set (`smallest_sets` on one device), `policies` give losses, `forecast` predicts uses,
`known_order` is exact where the future is declared, `kv_store` chooses the KV state that stays on disk.
"""
