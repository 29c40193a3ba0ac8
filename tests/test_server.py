"""Finding or starting the one local Prefect server."""

import http.server
import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from decant.errors import DecantError
from flows import server
from flows.server import Address


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An empty folder, and an environment without a word about Prefect that the test may change."""
    monkeypatch.chdir(tmp_path)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "DO_NOT"))}
    monkeypatch.setattr(os, "environ", kept)
    return monkeypatch


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a web server that is no Prefect server."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield other.server_address[1]
        other.shutdown()
        thread.join()


def test_address_comes_from_the_url_then_the_port_then_prefect_toml(bare: pytest.MonkeyPatch) -> None:
    assert server.settle_environment() == Address("http://127.0.0.1:4200/api")
    os.environ.clear()
    Path("prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:4300/api"\n')
    assert server.settle_environment().port == 4300
    os.environ.clear()
    os.environ["PREFECT_SERVER_API_PORT"] = "4301"
    assert server.settle_environment() == Address("http://127.0.0.1:4301/api")
    os.environ["PREFECT_API_URL"] = "https://prefect.example/team/api/"
    address = server.settle_environment()
    assert (address.host, address.port, address.is_local) == ("prefect.example", 443, False)
    assert address.ui == "https://prefect.example/team"


def test_telemetry_is_off(bare: pytest.MonkeyPatch) -> None:
    server.settle_environment()
    wanted = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "1"}
    assert wanted.items() <= os.environ.items()


def test_port_that_something_else_has_taken_is_an_error_with_a_way_out(bare: pytest.MonkeyPatch, stranger: int) -> None:
    os.environ["PREFECT_SERVER_API_PORT"] = str(stranger)
    with pytest.raises(DecantError, match=r"is not a Prefect 3\.x server; choose another port"):
        server.ensure_server(print)


def test_server_with_a_password_is_found_by_who_knows_it(bare: pytest.MonkeyPatch) -> None:
    class Guarded(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == "Basic YW5uYTpzZWNyZXQ="  # anna:secret, as RFC 7617 has it
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(b'"3.5.0"' if known else b'{"exception_message": "Unauthorized"}')

    with http.server.HTTPServer(("127.0.0.1", 0), Guarded) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        bare.setenv("PREFECT_API_URL", f"http://127.0.0.1:{other.server_address[1]}/api")
        with pytest.raises(DecantError, match="asks for a password: PREFECT_API_AUTH_STRING=user:password"):
            server.ensure_server(print)
        bare.setenv("PREFECT_API_AUTH_STRING", "anna:secret")
        assert server.answers(server.settle_environment())
        other.shutdown()


def test_far_server_that_does_not_answer_is_never_started_here(bare: pytest.MonkeyPatch) -> None:
    os.environ["PREFECT_API_URL"] = "http://prefect.invalid:4200/api"
    with pytest.raises(DecantError, match=r"no Prefect server answers at http://prefect\.invalid:4200/api"):
        server.ensure_server(print)


def test_server_that_dies_at_once_shows_its_last_words(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    os.environ |= {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_PORT": "1", "PREFECT_API_DATABASE_TIMEOUT": "no"}
    with pytest.raises(DecantError, match=r"did not start: .+ \(log: .*server.log\); or: decant run --no-server"):
        server.ensure_server(lambda line: None)


def test_running_server_is_found_and_its_page_asks_the_right_port(prefect_server: str) -> None:
    said: list[str] = []
    address = server.ensure_server(said.append)
    assert said == [f"Prefect's page: {prefect_server}"]
    assert int((server.home() / "server.pid").read_text()) > 0  # for `prefect server stop`
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{prefect_server}/ui-settings") as answer:
        assert json.load(answer)["api_url"] == address.url
