"""Ray: the cluster of RAY_ADDRESS, or one that is started on this machine and ends with the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from slm_guardian.errors import GuardianError


def connect() -> Any:
    """The `ray` module, connected and quiet. Raises GuardianError where it is missing or does not start."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise GuardianError("--engine ray needs Ray: pip install 'slm-guardian[ray]'") from None
    if not ray.is_initialized():
        _start(ray)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    return ray


def _start(ray: Any) -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    except Exception as error:  # Ray raises bare ones, too, such as when its node needs more than a minute
        where = os.environ.get("RAY_ADDRESS")
        advice = (
            f"no cluster answers at RAY_ADDRESS {where}" if where else "is the machine very busy? try again"
        )
        raise GuardianError(f"Ray did not start ({type(error).__name__}): {advice}") from error


def cores(ray: Any) -> int:
    """The cores of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def run_all(work: Callable[[Any], object], items: list[Any], done: Callable[[], None]) -> None:
    """`work` on every item, one a core, anywhere; `done` after each. Raises GuardianError when one fails."""
    ray = connect()
    task = ray.remote(num_cpus=1, max_retries=3)(work)
    waiting = [task.remote(item) for item in items]
    while waiting:
        ready, waiting = ray.wait(waiting)
        try:
            ray.get(ready)
        except ray.exceptions.RayError as error:
            raise failure(error) from error
        done()


def failure(error: Exception) -> GuardianError:
    """What a job died of: our own error as it was, another's name."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, GuardianError):
        return cause
    reason = type(cause or error).__name__
    return GuardianError(f"the Ray job failed ({reason}): run the same command again to go on")
