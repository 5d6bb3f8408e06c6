"""Everything that a stranger, a broken server or a garbled Redis may say to the gateway, and what came of it."""
