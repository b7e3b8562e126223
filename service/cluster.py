"""Ray, which brings work to other machines: how it is found, started and kept quiet. It is imported when it is used."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..ltx_core.errors import ConfigError, UnsupportedError


@dataclass(frozen=True)
class Cluster:
    """Where clips are made for a server. address: of a Ray cluster, or "auto"; None: one on this machine, for this
    server. least, most: replicas; most=None: one for each GPU."""

    address: str | None = None
    least: int = 1
    most: int | None = None


def check_installed(name: str, extra: str, *, address: str | None = None) -> None:
    """Import a part of Ray, for the cluster at an address.

    Raises UnsupportedError: it, or something that it needs, is not installed.
    """
    _before_import(address)
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise UnsupportedError(
            f"got an installation without {missing}; expected the extra `{extra}`; pip install 'ltxkit[{extra}]'"
        ) from error


def _before_import(address: str | None) -> None:
    """What Ray reads from the environment when it is imported: nothing is reported to anybody, and a cluster of this
    machine alone listens on its loopback address, as it does by itself on other systems than Linux, and has a token of
    its own, which Ray would keep in the home folder.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def join(address: str | None, cpus: int) -> Any:
    """Ray, connected to a cluster, or to a new one on this machine, which listens on it alone. Returns the module.

    cpus: how many actors a new one must have room for.

    Raises:
        ConfigError: no cluster answers at the address. UnsupportedError: Ray does not start on this machine.
    """
    _before_import(address)
    import ray

    try:
        with _same_signals():
            _begin(ray, address, cpus)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise UnsupportedError(
                f"got a machine on which Ray does not start ({error}); expected one on which `ray start --head` works; "
                "leave --ray out"
            ) from error
        raise ConfigError(
            f"got the address {address}, at which no Ray cluster answers ({error}); expected one; start it with `ray "
            "start --head`, or leave the address out"
        ) from error
    return ray


def _begin(ray: Any, address: str | None, cpus: int) -> None:
    if address is None:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=max(cpus, os.cpu_count() or 1),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def _same_signals() -> Generator[None]:
    """Inside, Ray takes SIGTERM for itself, in Python and, with a trace of the stack, in C++; what was there before
    it is there again after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not set by Python
                signal.signal(number, handler)


def gpus(ray: Any, device: str | None) -> int:
    """The GPUs of the cluster, if its actors are to have one each; device: of an actor, None: the best there is."""
    return int(ray.cluster_resources().get("GPU", 0)) if device in (None, "cuda") else 0
