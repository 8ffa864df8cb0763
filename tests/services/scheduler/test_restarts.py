"""When a crashed engine is started again."""

from services.scheduler.domain.policy import Policy
from services.scheduler.domain.restarts import crashes_in_a_row, restart_delay_seconds


def test_restarts_double_up_to_a_limit_and_a_long_run_forgets() -> None:
    policy = Policy(restart_base_seconds=1.0, restart_most_seconds=300.0)
    assert [restart_delay_seconds(n, policy) for n in (0, 1, 2, 3, 9, 10, 1000)] == [0, 1, 2, 4, 256, 300, 300]
    assert crashes_in_a_row(5, policy.steady_seconds, policy) == 1
    assert crashes_in_a_row(5, 1.0, policy) == 6
