"""`muster up`: every service in one process, with a real nats-server and a real PostgreSQL as its children."""
