"""Benchmarks: programs that print what they measured, on which machine."""
