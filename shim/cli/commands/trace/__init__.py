"""`keepwarm trace`: the group and its short commands, where traces lie, capturing, and asking by SQL."""
