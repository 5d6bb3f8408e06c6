"""Sources of rewards: a model in this process, or servers."""
