"""One file per vendor: how an engine gets at the GPUs that are assigned to it. No container is privileged."""
