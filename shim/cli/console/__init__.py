"""What commands share: how they print, ask the running keeper, fail, wait and stop."""
