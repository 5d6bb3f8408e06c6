"""The contract of a request: its tools and response format, bounded, lowered for a server, and checked on answers."""
