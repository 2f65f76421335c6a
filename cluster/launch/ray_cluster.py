"""A connection to Ray: the cluster of RAY_ADDRESS, else one on this machine for as long as the command runs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sharding.errors import UserError


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """The module `ray`, connected. Raises UserError if RAY_ADDRESS names a cluster that does not answer."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers ({error})",
            f"RAY_ADDRESS={address}",
            "start it, correct RAY_ADDRESS, or unset it to run on this machine",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def cpus(ray: Any) -> int:
    """CPU slots of the whole cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
