"""Every completion as one durable record."""
