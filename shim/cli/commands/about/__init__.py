"""`keepwarm list`, `show`, `logs` and `version`: the models with their facts and logs, and the programs."""
