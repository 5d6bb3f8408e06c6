"""Training of the policy: LoRA on the base, from winners and from the answers that they beat."""
