"""Find the Prefect server of this machine, or start one that stays.

It is a process of its own that writes to a log file. Why not Prefect's ephemeral server: it costs 12 s on every run and
has no page. Why not `prefect server start --background`: it dies of the first error that it tries to print. Starting
takes 11 to 20 s the first time on two cores; finding it, 10 ms.

Nothing of Prefect is imported here, because the address must be settled before Prefect reads its settings.
"""

import base64
import http.client
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from decant.errors import DecantError

PATIENCE = 120.0  # seconds for a server to come up; it creates its database the first time
LOCAL = ("127.0.0.1", "localhost", "0.0.0.0", "::1")
VERSION = "3."  # the API that we speak


@dataclass(frozen=True)
class Address:
    """The address of a server's API: Prefect's PREFECT_API_URL."""

    url: str

    @property
    def host(self) -> str:
        """The host; 127.0.0.1 where the address names none."""
        return urlsplit(self.url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        """The port; the default one of the scheme where the address names none."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def ui(self) -> str:
        """The address of Prefect's page."""
        return self.url.removesuffix("/api")

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine."""
        return self.host in LOCAL


def settle_environment() -> Address:
    """Sets the server's address for Prefect, here and in every child process, and turns telemetry off.

    PREFECT_API_URL, else PREFECT_SERVER_API_PORT, else prefect.toml, else port 4200.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    port = os.environ.get("PREFECT_SERVER_API_PORT")
    url = os.environ.get("PREFECT_API_URL") or (f"http://127.0.0.1:{port}/api" if port else _from_toml())
    os.environ["PREFECT_API_URL"] = url = url.rstrip("/")
    return Address(url)


def _from_toml() -> str:
    path = Path("prefect.toml")
    settings = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(settings.get("api", {}).get("url", "http://127.0.0.1:4200/api"))


def home() -> Path:
    """Prefect's folder, which holds the server's database, log and process id."""
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()


def ensure_server(say: Callable[[str], None]) -> Address:
    """Finds or starts the server; `say` prints where its page is. Raises DecantError with what to do when it can't."""
    address = settle_environment()
    if answers(address):
        say(f"Prefect's page: {address.ui}")
        return address
    if not address.is_local:
        raise DecantError(f"no Prefect server answers at {address.url}; start it there, or unset PREFECT_API_URL")
    say(f"starting a Prefect server at {address.ui} (once; it stays) ...")
    process = start(address)
    wait_for(address, process)
    say(f"Prefect's page: {address.ui}   (log: {log_file()}; stop it with: prefect server stop)")
    return address


def answers(address: Address) -> bool:
    """Whether a Prefect server of our version answers. Raises DecantError when something else does."""
    try:
        version = _get(address, "/admin/version")
    except (OSError, http.client.HTTPException):
        return False
    if not (isinstance(version, str) and version.startswith(VERSION)):
        raise DecantError(
            f"what answers at {address.ui} is not a Prefect {VERSION}x server; "
            "choose another port: PREFECT_SERVER_API_PORT=4301 decant run"
        )
    return True


def _get(address: Address, path: str) -> Any:
    """The JSON at that path of the API, without going through any proxy; None when it is no JSON.

    Raises: DecantError when the server wants a password, or another one.
    """
    secure = urlsplit(address.url).scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=5)
    try:
        connection.request("GET", urlsplit(address.url).path + path, headers=_credentials())
        response = connection.getresponse()
        if response.status == http.client.UNAUTHORIZED:
            raise DecantError(f"the server at {address.ui} asks for a password: PREFECT_API_AUTH_STRING=user:password")
        return json.loads(response.read())
    except ValueError:
        return None
    finally:
        connection.close()


def _credentials() -> dict[str, str]:
    """What Prefect's own client sends to a server that asks for a password."""
    known = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(known.encode()).decode()}"} if known else {}


def log_file() -> Path:
    """The server's log."""
    return home() / "server.log"


def start(address: Address) -> subprocess.Popen[bytes]:
    """Starts the server so that it stays when we end. `prefect server stop` finds it by its pid file."""
    home().mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_SERVER_API_HOST": address.host,
        "PREFECT_SERVER_API_PORT": str(address.port),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_CONCURRENCY_MAXIMUM_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }
    with log_file().open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start"], cwd=home(), env=environment,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    (home() / "server.pid").write_text(str(process.pid))
    return process


def wait_for(address: Address, process: subprocess.Popen[bytes]) -> None:
    """Waits until the server answers. Raises DecantError with the end of its log when it ends or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if answers(address):
            return  # also when another `decant run` was faster and ours found the port taken
        if ended:
            break
        time.sleep(0.2)
    last = log_file().read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise DecantError(
        f"the Prefect server did not start: {''.join(last)} (log: {log_file()}); or: decant run --no-server"
    )
