"""Instances of one model on different workers: the loss of a machine is the loss of one of them. Counts those that are there."""

from services.scheduler.domain.candidate import Request
from services.scheduler.domain.shapes import Layout


def replicas_apart(layout: Layout, request: Request) -> int:
    return layout.machine.replicas.get(request.model_id, 0) if request.model_id is not None else 0
