"""Deletion on request: the records of an answer, a conversation or an API key, and every copy made of them."""
