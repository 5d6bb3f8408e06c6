"""The report of a night: its facts as one JSON document, and as one HTML page."""
