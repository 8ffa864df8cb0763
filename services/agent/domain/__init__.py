"""The agent's rules: command lines, diagnoses, and the ports that its adapters fill."""
