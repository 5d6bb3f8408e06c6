"""The demo: asks the embedded stack a dozen prompts and shows every race (``make demo``)."""
