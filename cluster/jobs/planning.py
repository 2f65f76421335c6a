"""The job `plan`: a recipe, a store's index where it can be read, and measured files, worked out for a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.training import TrainingJob, require_no_password_in
from pretrain.planning.measured import read_measured
from pretrain.planning.plan import plan_run
from pretrain.planning.settings import PlanSettings
from pretrain.planning.workload import store_facts
from sharding.base.errors import UserError
from sharding.base.settings import load_settings
from sharding.format.index import Index, current_index
from sharding.storage.store import is_remote, open_store


class PlanJob(TrainingJob):
    """A training run, and the cluster that it is planned for."""

    plan: Annotated[PlanSettings, Field(description="the cluster that the run is planned for")] = PlanSettings()


def run_plan(config: str, overrides: Sequence[str], measured: Sequence[str]) -> dict[str, Any]:
    """The plan of a recipe, as `pretrain.planning.plan.plan_run` gives it, with `title` and notes on the store.

    Raises UserError for settings that do not fit, a URL with a password, which would be printed, lanes set for this
    plan that do not spread over its GPUs, and measured files that cannot be read.
    """
    require_no_password_in(config, overrides)
    job = load_settings(PlanJob, config, list(overrides))
    train, plan = job.train, job.plan
    _require_lanes(train.lanes, plan.nodes * plan.gpus_per_node, overrides)
    url = train.data.store
    index, note = _index(url)
    facts = store_facts(index, plan, f"{Path(config).stem} {url}")
    tree = plan_run(train, plan, facts, read_measured(measured), is_remote(url))
    notes = [note, *tree.pop("notes")] if note else tree.pop("notes")
    size = f"{plan.nodes} nodes × {plan.gpus_per_node} GPUs"
    return {"title": f"plan {config} on {size}", "store": url, **tree, "notes": notes}


def _require_lanes(lanes: int, ranks: int, overrides: Sequence[str]) -> None:
    """Raises UserError where lanes were set for this plan, and no number of them goes to each GPU."""
    if lanes % ranks and any(override.partition("=")[0].strip() == "lanes" for override in overrides):
        raise UserError(
            f"{lanes} lanes do not spread over {ranks} GPUs",
            "lanes, --nodes, --gpus-per-node",
            f"use a multiple of {ranks} lanes, or leave lanes out and have the plan take one",
        )


def _index(url: str) -> tuple[Index | None, str]:
    """The newest index of a store, or None and why there is none."""
    try:
        index = current_index(open_store(url))
    except (UserError, OSError) as error:
        why = error.what if isinstance(error, UserError) else str(error)
        return None, f"the store {url} is not read ({why}): its sizes are assumed"
    if "train" not in index.splits:
        return None, f"the store {url} has nothing to train on: its sizes are assumed"
    return index, ""
