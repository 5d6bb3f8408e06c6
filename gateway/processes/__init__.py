"""Child processes that end with their parent, and signals that end a block of code."""
