"""The options of calls: keepwarm's own, and those of chats as an editor shows them."""
