"""OpenTelemetry traces: a span for each request, race, candidate, score and journal write. Off without a collector."""
