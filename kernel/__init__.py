"""The machinery under the services: log, projections, inbox, clock, settings, process, telemetry. Knows no GPU."""
