"""Data of the night: the journal archived, curated with a reason for every exclusion, and split permanently."""
