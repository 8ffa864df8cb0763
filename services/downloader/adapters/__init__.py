"""Where model files come from: this machine's disk; the hubs follow."""
