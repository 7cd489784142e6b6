"""The command: flags, environment variables, bad ones, and its end."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest

from client import InvalidRequestError
from client.gateway.__main__ import main
from client.gateway.serving import _listen
from client.gateway.settings import Settings, read
from tests import ROOT
from tests.support.gateways import ASKED, STOP_S, gateway_running
from tests.support.odd_servers import OddServer, odd_server


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"ranker": ("ranker", ("h:1", "h:2"))}),
        (["--models", "a=x@g:1,g:2,b=y", "--models", "z"],
         {"a": ("x", ("g:1", "g:2")), "b": ("y", ("h:1", "h:2")), "z": ("z", ("h:1", "h:2"))}),
        (["--models", "new=@g:1"], {"new": ("ranker", ("g:1",))}),
        (["--models", "*=x"], {"x": ("x", ("h:1", "h:2"))}),
        (["--models", "a=y,*=x,x"], {"a": ("y", ("h:1", "h:2")), "x": ("x", ("h:1", "h:2"))}),
    ],
)  # fmt: skip
def test_models_and_servers(flags: list[str], expected: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    settings = read(["--servers", "h:1", "--servers", "h:2", *flags])
    found = settings.connections()
    assert {name: (one.model, one.servers) for name, one in found.items()} == expected
    assert list(found) == list(expected)  # the first is the default


def test_a_flag_wins_over_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISRANKER_GATEWAY_MAX_DOCUMENTS", "7")
    monkeypatch.setenv("DISRANKER_GATEWAY_API_KEYS", "key-1, key-2")
    monkeypatch.setenv("DISRANKER_GATEWAY_TIMEOUT", "2.5")
    settings = read(["--timeout", "3", "--authorization", "Bearer secret", "--hedge", "0.95"])
    assert (settings.max_documents, settings.timeout) == (7, 3.0)
    assert [key.get_secret_value() for key in settings.api_keys] == ["key-1", "key-2"]
    assert settings.connections()["ranker"].authorization == "Bearer secret"
    assert settings.connections()["ranker"].timeout_s == 3.0
    assert settings.connections()["ranker"].hedge == 0.95
    assert not any(secret in repr(settings) for secret in ("key-1", "key-2", "Bearer"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "x"], "--port (or DISRANKER_GATEWAY_PORT): Input should be a valid integer"),
        (["--timeout", "0"], "--timeout (or DISRANKER_GATEWAY_TIMEOUT): Input should be greater than 0"),
        (["--hedge", "1"], "--hedge (or DISRANKER_GATEWAY_HEDGE): Input should be less than 1"),
        (["--chunk_words", "5", "--chunk_overlap", "5"], "chunk_overlap must be below chunk_words (5), not 5"),
        (["--models", "a,a"], "--models: two have the same name: a, a"),
        (["--models", "*=x,*=y"], "--models: two have the same name: *, *"),
        (["--models", "x,*=x@g:1"], "--models: * is x, and there is another of that name"),
        (["--root_path", "ranking"], "--root_path (or DISRANKER_GATEWAY_ROOT_PATH): Input should be a path such as"),
        (["--models", "=x"], "--models: '=x' has no name before '='"),
        (["--models", "a=x@"], "a target is model@host:port, model, or @host:port"),
        (["--models", ","], "--models: name at least one"),
        (["--servers", ","], "servers: name at least one"),
        (["--tls_key", "key.pem"], "tls_certificate and tls_key: give both or neither"),
        (["--allowed_hosts", "a.b,*c"], "'*c' is neither a name nor *.NAME"),
        (["--allowed_hosts", "a:80"], "'a:80' is neither a name nor *.NAME (any port of it is allowed)"),
        (["--root_certificates", "/nowhere.pem"], "/nowhere.pem: no such file"),
    ],
)
def test_settings_that_cannot_be_meant(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(flags).connections()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NUMBERS = {name: field for name, field in Settings.model_fields.items() if field.annotation in (int, float)}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300", "1.5.2", "", "9" * 5000])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_cannot_be_meant(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--{name}={value}"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    flag = f"error: --{name} (or DISRANKER_GATEWAY_{name.upper()}): "
    assert err.startswith((f"{flag}Input should be", f"{flag}Unable to parse input"))


def test_a_gateway_serves_with_the_largest_numbers_and_an_interrupt_is_a_good_end(tmp_path: Path) -> None:
    largest = {name: "9" * 30 for name in NUMBERS if name not in ("port", "timeout", "chunk_overlap")}
    flags = [f"--{name}={value}" for name, value in {**largest, "timeout": "1e9", "head_timeout": "1e9"}.items()]
    with (
        odd_server(OddServer(np.arange)) as url,
        gateway_running(tmp_path / "log", "--servers", url, *flags) as gateway,
    ):
        answer = httpx.post(f"{gateway.url}/v1/rerank", json=ASKED)
        assert [one["index"] for one in answer.json()["results"]] == [1, 0]
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(STOP_S) == 0  # and not again by SIGTERM
        assert "Traceback" not in gateway.log.read_text()


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_first_part() -> None:
    with _listen(read(["--port", "0"])) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_every_setting_is_documented() -> None:
    documentation = (ROOT / "docs/gateway.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert field.description
        assert f"| `--{name}` |" in documentation


@pytest.mark.parametrize("name", ["GATEWAY_APIKEYS", "GATEWY_API_KEYS", "API_KEYS", "GATEWAYAPI_KEYS", "api_key"])
def test_a_misspelt_variable_does_not_leave_the_gateway_open(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for others in ("AUTHORIZATION", "ADMIN_KEY", "RESTARTS", "MIRROR", "PORT", "PORT_8001_TCP_ADDR", "SERVICE_HOST"):
        monkeypatch.setenv(f"DISRANKER_{others}", "x")
    read([])
    monkeypatch.setenv(f"DISRANKER_{name}", "secret")
    with pytest.raises(InvalidRequestError) as caught:
        read([])
    assert str(caught.value) == (
        f"the variable DISRANKER_{name} is no setting of the gateway: is DISRANKER_GATEWAY_API_KEYS meant?"
    )


def test_files_of_tls_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.pem").touch()
    for name in ("nowhere.pem", "no.pem"):
        assert main([f"--tls_certificate={tmp_path / name}", f"--tls_key={tmp_path / name}"]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1) and str(tmp_path / name) in err


def test_bad_settings_get_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert [main(flags) for flags in (["--models", "a,a"], ["--port", str(port)])] == [2, 2]
    assert capsys.readouterr() == (
        "",
        "error: --models: two have the same name: a, a\n"
        f"error: cannot listen at 127.0.0.1:{port}: Address already in use\n",
    )
