"""The connection of this process to a Ray cluster, with one line for each reason why there is none."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

RUNTIME_ENV = "WM_RUNTIME_ENV"
"""Name of the environment variable with Ray's `runtime_env`: a JSON object, or the path of a file with one."""

HEAD_S = 1.0
"""Time between two looks at the head of the cluster."""
HEAD_LOOKS = 3
"""The head is lost if it does not answer this many looks in a row."""
Result = TypeVar("Result")


class HeadLost(RuntimeError):
    """The head of the cluster does not answer any more."""


def connect(address: str, runtime_env: Mapping[str, Any] | None) -> None:
    """Connect this process to the cluster at `address`, unless it is connected to a head that answers.

    Args:
        address, runtime_env: as in `policies.ray_pool.RayCluster`.

    Raises:
        ImportError: Ray is not installed.
        ValueError, RuntimeError: there is no such cluster, or it refuses; one line with the reason.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Of nodes that this process starts. Ray's default is 15.
    # Ray ends this process that long after the head is gone, even if it trains meanwhile. Its default is a minute.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    try:
        import ray
        import ray._private.worker as driver
    except ImportError as error:
        raise ImportError("workers on Ray need the package ray: pip install 'dreams-as-envs[distributed]'") from error
    if ray.is_initialized():
        if answers(ray.get_runtime_context().gcs_address):
            return
        ray.shutdown()  # There may be another head.
    if ":" in address:
        _check_address(address)
    elif address == "auto":
        _check_latest()
    elif address != "local":
        raise ValueError(f"ray must be auto, local or HOST:PORT, got {address!r}")
    driver.listen_error_messages = _ignore
    found, before = dict(_runtime_env(runtime_env)), signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            runtime_env=found,
            include_dashboard=None if address != "local" else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except ConnectionError as error:  # Something listens there, as was checked.
        raise RuntimeError(
            f"Ray at {address} rejects the connection ({' '.join(str(error).split())}); if the cluster requires a "
            "token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN as on its head"
        ) from error
    except (RuntimeError, ValueError, ray.exceptions.RayError) as error:  # Such as other versions, or a wrong token.
        raise RuntimeError(f"Ray at {address}: {' '.join(str(error).split())}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray replaces it by one that ends the program.


def _ignore(worker: Any, threads_stopped: Any) -> None:
    """Read no messages of the cluster: Ray prints the log of a lost node to stdout. The pool reports the loss."""


def _no_cluster(address: str) -> str:
    return (
        f"found no Ray cluster ({address}): start one with `ray start --head` and `ray start --address HOST:6379` on "
        "every other machine, or use `local`"
    )


def _check_latest() -> None:
    """Check that the cluster of this machine, as Ray has recorded it, still has a head."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        address = canonicalize_bootstrap_address("auto")
    except ConnectionError as error:
        raise RuntimeError(_no_cluster("auto")) from error
    if address is None:  # The environment variable RAY_ADDRESS is `local`.
        return
    try:
        _reach(address)
    except OSError as error:
        raise RuntimeError(f"{_no_cluster('auto')}; the last one, at {address}, does not answer ({error})") from error


def _reach(address: str, limit_s: float = 5.0) -> None:
    """Check that something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=limit_s).close()


def while_head_answers(address: str, call: Callable[[], Result]) -> Result:
    """Return the result of `call`, a use of Ray, which waits for up to an hour if the head at `address` is gone.

    Raises:
        HeadLost: the head did not answer `HEAD_LOOKS` times in a row; the call is left to a daemon thread.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    failures = 0
    while not wait([future], timeout=HEAD_S).done:
        failures = 0 if answers(address) else failures + 1
        if failures == HEAD_LOOKS:
            raise HeadLost(f"the head of the Ray cluster at {address} does not answer")
    return future.result()


def answers(address: str) -> bool:
    """Whether a head accepts connections."""
    try:
        _reach(address, limit_s=2)
    except OSError:
        return False
    return True


def _check_address(address: str) -> None:
    """Check that a head listens at HOST:PORT, because Ray waits for half a minute."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        raise ValueError(f"ray must be auto, local or HOST:PORT, got {address!r}")
    try:
        _reach(address)
    except OSError as error:
        raise RuntimeError(
            f"no Ray cluster at {address} ({error}): start one there with `ray start --head --port {port}`, or use auto"
        ) from error


def _runtime_env(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if given is not None:
        return given
    text = os.environ.get(RUNTIME_ENV, "").strip()
    if not text:
        return {}
    try:
        if not text.startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{RUNTIME_ENV} must be a JSON object or the path of a JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{RUNTIME_ENV} must be a JSON object, got {type(found).__name__}")
    return found
