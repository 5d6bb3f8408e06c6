"""Measure what N is worth: samples, rewards and their statistics."""
