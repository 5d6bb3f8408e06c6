"""From a trained adapter to traffic and back: publish, load, weight check, canary, guard, rollback."""
