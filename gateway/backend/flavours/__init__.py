"""What differs between backend servers, and nothing else."""
