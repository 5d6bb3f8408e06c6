"""The night's steps, each a function from the run's context to its result."""
