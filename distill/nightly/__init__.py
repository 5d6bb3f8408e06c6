"""The order of a night, resumable step by step."""
