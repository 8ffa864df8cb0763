"""The event log: one port, two adapters (JetStream, memory) under one contract suite."""
