"""The files in docker/, looked at without a container engine."""
