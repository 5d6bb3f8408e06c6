"""Other best-of-N gateways, measured on the same stub."""
