"""Let one stage at a time use each GPU, over all flow runs of a Prefect server.

Each GPU of each machine has its own global concurrency limit of one slot, called `HOST-gpu-N` and created by us; a
person may raise it on the Prefect page for a GPU that has room for more. Stages with the tag `gpu` hold a slot while
they run. Where there is no GPU the limit exists but nobody takes it: on a CPU, two runs merely share the cores.

Which GPU: DECANT_DEVICE (`cuda:1`), else the first. A slot is a lease that its holder renews, so a flow that was
killed gives it back within LEASE seconds.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

LEASE = 60.0  # seconds; the shortest that Prefect grants


def limit_name() -> str:
    """The name of the concurrency limit of the GPU that this machine's stages use."""
    _, _, number = os.environ.get("DECANT_DEVICE", "auto").partition(":")
    return f"{socket.gethostname()}-gpu-{number or 0}"


def will_be_used() -> bool:
    """Whether a stage on this machine will compute on a GPU, found out without loading torch."""
    wanted = os.environ.get("DECANT_DEVICE", "auto")
    return wanted.startswith("cuda") or (wanted == "auto" and _listed())


@cache
def _listed() -> bool:
    program = shutil.which("nvidia-smi")
    return bool(program) and b"GPU 0" in subprocess.run([str(program), "-L"], capture_output=True, check=False).stdout


def create_limit() -> None:
    """Creates the limit with one slot, unless it is there."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(limit_name())
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # another flow run was faster
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit_name(), limit=1))


@contextmanager
def slot(tags: tuple[str, ...]) -> Iterator[None]:
    """Holds a slot of this machine's GPU, for stages with the tag `gpu`."""
    if "gpu" not in tags or not will_be_used():
        yield
        return
    get_run_logger().info("waits for a slot on %s", limit_name())
    # The lease's renewal may fail for a while (server restarted): no reason to kill hours of training.
    with concurrency(limit_name(), strict=True, lease_duration=LEASE, raise_on_lease_renewal_failure=False):
        yield
