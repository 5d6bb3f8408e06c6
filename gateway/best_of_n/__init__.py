"""Answer requests with the best of N candidates: plan, race, score, select, record."""
