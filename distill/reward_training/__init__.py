"""Training of the reward model, from human preferences and spoiled answers."""
