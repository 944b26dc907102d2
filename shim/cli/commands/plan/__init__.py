"""`keepwarm plan`: a preview of what would be resident, decided by the core itself."""
