"""Measurements: load, faults, hostile input, overhead, cost, quality of training. README.md lists them."""
