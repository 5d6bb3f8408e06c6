"""What an operator opens in the morning: a night's facts as one JSON document, and as one page of HTML."""
