"""The files in docker/, tested without a container engine."""
