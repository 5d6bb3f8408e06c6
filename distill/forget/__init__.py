"""Deletion on request: the records of an answer, a conversation or an API key, and all copies of them."""
