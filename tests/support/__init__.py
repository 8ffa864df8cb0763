"""Real servers and services for tests, and small builders."""
