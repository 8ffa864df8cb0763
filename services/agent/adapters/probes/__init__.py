"""How GPUs are found: one adapter per vendor asks its library or its tool, and can't hang the agent by it."""
