"""What the night learns from: the journal archived, curated with a reason for every exclusion, and split for ever."""
