"""`keepwarm simulate`: a trace under several policies, as a table and as a picture."""
