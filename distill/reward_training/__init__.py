"""Trains the reward model from people's preferences and spoiled answers."""
