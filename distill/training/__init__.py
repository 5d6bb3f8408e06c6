"""Training: the reward model from preference pairs."""
