"""The heart: one request's race, plan → fan out → score → select. No I/O of its own."""
