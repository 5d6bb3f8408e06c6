"""Every command of ``python -m distill``."""
