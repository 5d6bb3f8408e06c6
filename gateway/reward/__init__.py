"""Where rewards come from: a model in this process, or a server."""
