"""Further arguments of llama-server, as a user writes them: what they change of an engine's figures."""
