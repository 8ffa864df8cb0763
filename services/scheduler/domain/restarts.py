"""When a crashed engine is started again: at once doubling delays, bounded; a long run forgets former crashes."""

from services.scheduler.domain.policy import Policy


def restart_delay_seconds(crashes: int, policy: Policy) -> float:
    """`crashes` in a row, the newest included; 0 when the engine was not to blame."""
    if crashes == 0:
        return 0.0
    return min(policy.restart_base_seconds * 2.0 ** min(crashes - 1, 30), policy.restart_most_seconds)


def crashes_in_a_row(before: int, ran_for_seconds: float, policy: Policy) -> int:
    return 1 if ran_for_seconds >= policy.steady_seconds else before + 1
