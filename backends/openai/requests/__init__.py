"""What requests are made of beside messages: JSON schemas, and the verbs that are no chat."""
