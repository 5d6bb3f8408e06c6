"""Faults on real processes: what clients see, how many records are lost, how long until all is normal."""
