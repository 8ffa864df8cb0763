"""An engine loads by its machine's proxies, unless its author says otherwise, and by none from the fleet."""

from services.agent.domain.engines.command import command_of
from services.agent.domain.proxies import by_proxies, hosts, proxies
from tests.services.agent.starts import a_launch, a_start

PROXY = "http://user:p%40ss@proxy:3128"
LOOPBACK = "127.0.0.1,localhost,::1"
NONE = {"NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}


def test_the_machines_go_on_as_they_are() -> None:
    machine = {
        "HTTPS_PROXY": PROXY,
        "http_proxy": "socks5h://p",
        "ALL_PROXY": "",
        "HF_ENDPOINT": "http://hub/",
        "X": "y",
    }
    assert proxies({}, machine) == {name: machine[name] for name in machine if name != "X"} | NONE


def test_the_authors_win_in_either_spelling() -> None:
    machine = {"HTTPS_PROXY": PROXY, "https_proxy": PROXY, "HTTP_PROXY": PROXY, "hf_endpoint": "http://hub"}
    assert proxies({"https_proxy": "http://mine", "HF_ENDPOINT": ""}, machine) == {"HTTP_PROXY": PROXY} | NONE


def test_no_proxy_has_what_was_excepted_by_the_author_or_else_by_the_machine_and_always_the_fleet() -> None:
    def excepted(authors: dict[str, str], machine: dict[str, str]) -> set[str]:
        found = proxies(authors, machine, ("10.0.0.1", "10.0.0.2", "10.0.0.1"))
        return {found["NO_PROXY"], found["no_proxy"]}

    assert excepted({}, {}) == {f"{LOOPBACK},10.0.0.1,10.0.0.2"}
    assert excepted({}, {"no_proxy": "10.0.0.0/8, localhost,"}) == {
        "10.0.0.0/8,localhost,127.0.0.1,::1,10.0.0.1,10.0.0.2"
    }
    assert excepted({"NO_PROXY": "hub"}, {"NO_PROXY": "other"}) == {f"hub,{LOOPBACK},10.0.0.1,10.0.0.2"}
    assert excepted({"no_proxy": ""}, {"NO_PROXY": "other"}) == {f"{LOOPBACK},10.0.0.1,10.0.0.2"}


def test_an_engine_of_several_machines_reaches_all_of_them_and_the_control_plane_directly() -> None:
    start = a_start(a_launch("vLLM", env={"HTTP_PROXY": "http://mine"}), nodes=2, rank=1)
    env = by_proxies(
        start, command_of(start), {"http_proxy": PROXY}, "nats://bus.example.org:4222", ("gateway", "10.0.0.3")
    ).env
    assert (env["HTTP_PROXY"], "http_proxy" in env) == ("http://mine", False)
    assert env["NO_PROXY"] == f"{LOOPBACK},10.0.0.2,10.0.0.1,bus.example.org,gateway,10.0.0.3"


def test_hosts_of_addresses() -> None:
    assert hosts("nats://user:x@10.0.0.1:4222, bus:4222,tls://[fd00::1]:4222,,nats://[") == (
        "10.0.0.1",
        "bus",
        "fd00::1",
    )
