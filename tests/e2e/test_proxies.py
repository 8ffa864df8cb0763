"""A proxy with a password: engines use it as it is, and nobody else ever sees it."""

import json
import logging
import sys
from pathlib import Path

import pytest

from kernel.telemetry import JsonFormatter, TextFormatter
from tests.support.stack import Stack

PROXY = "http://user:p%40ss@proxy.example:3128"
SECRET = "p%40ss"
ENGINE = """
import json, os, sys
json.dump(dict(os.environ), open({file!r}, "w"))
print("can't reach https://hub.example through", os.environ["HTTPS_PROXY"], flush=True)
print("server_args: api_key=" + os.environ["LLAMA_API_KEY"], flush=True)
sys.exit(3)
"""


async def test_the_engine_has_it_and_neither_event_nor_answer_nor_log_does(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    script, seen = tmp_path / "engine.py", tmp_path / "seen.json"
    script.write_text(ENGINE.format(file=str(seen)))
    caplog.set_level(logging.DEBUG)
    await stack.start_scheduler(engine_no_proxy="gateway.example")
    await stack.start_api()
    await stack.start_worker(0, llama_cpp_command=f"{sys.executable} {script}")
    client = stack.client()
    await client.deploy("tinychat", env={"HF_ENDPOINT": "https://mirror.example"}, restart_on_error=False)
    failed = (await client.until("/v2/model-instances", has_failed))["items"][0]
    assert failed["log_tail"] == [
        "can't reach https://hub.example through http://***@proxy.example:3128",
        "server_args: api_key=***",
    ]

    env = json.loads(seen.read_text())
    assert (env["HTTPS_PROXY"], env["HF_ENDPOINT"]) == (PROXY, "https://mirror.example")
    assert env["NO_PROXY"] == env["no_proxy"] == "intranet.example,127.0.0.1,localhost,::1,gateway.example"
    key = env["LLAMA_API_KEY"]

    sql = await stack.sql()
    try:
        bodies = [bytes(row["body"]).decode() for row in await sql.fetch("SELECT body FROM muster.event_log")]
    finally:
        await sql.close()
    answers = [str(await client.get(path)) for path in ("/v2/models", "/v2/model-instances", "/v2/workers")]
    timeline = str(await client.get(f"/v2/model-instances/{failed['id']}/timeline"))
    lines = [formatter.format(record) for formatter in FORMATTERS for record in caplog.records]
    lines.append(str(await client.get(f"/v2/model-instances/{failed['id']}/logs?attempt=1")))
    assert any("proxy.example" in text for text in bodies)
    assert not [text for text in (*bodies, *answers, timeline, *lines) if SECRET in text or key in text]


@pytest.mark.parametrize("formatter", [JsonFormatter("agent"), TextFormatter()])
def test_a_line_of_a_log_has_no_password(formatter: logging.Formatter) -> None:
    record = logging.makeLogRecord({"msg": "no answer from %s", "args": (PROXY,), "levelname": "INFO"})
    error = ValueError(PROXY)
    record.exc_info = (ValueError, error, None)
    line = formatter.format(record)
    assert "http://***@proxy.example:3128" in line
    assert SECRET not in line


FORMATTERS = (JsonFormatter("agent"), TextFormatter())


def has_failed(found: dict[str, list[dict[str, object]]]) -> bool:
    return [item["state"] for item in found["items"]] == ["error"]
