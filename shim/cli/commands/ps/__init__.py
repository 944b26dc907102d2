"""`keepwarm ps`: the books, the engines, the queue, declared uses, and what went wrong."""
