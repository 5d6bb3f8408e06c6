"""Hostile callers, servers and Redis replies, and the gateway's outcome for each."""
