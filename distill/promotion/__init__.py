"""From a trained adapter to traffic and back: publish, load, canary, policy, guard."""
