"""Faults on real processes: what clients see, what is lost, how long until all is well again."""
