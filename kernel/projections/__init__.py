"""From the log to Postgres: exactly once, rebuildable, with the log's second copy beside the state."""
