"""The last sentence of a service that can't start."""

import pytest

from kernel.process import main
from kernel.settings import BadSettings, ServiceSettings


def test_it_has_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> ServiceSettings:
        raise BadSettings("nothing answers at nats://user:p%40ss@bus:4222")

    async def start() -> None:
        raise AssertionError

    with pytest.raises(SystemExit) as ended:
        main("agent", read, start)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "muster agent: nothing answers at nats://***@bus:4222\n"
