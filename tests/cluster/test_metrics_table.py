"""The table of all metrics in cluster/README.md; `python -m tests.cluster.test_metrics_table` writes it anew."""

from __future__ import annotations

from pathlib import Path

import cluster.jobs.evaluation
import cluster.monitor.page
import pretrain.metrics
import pretrain.telemetry.gpu_usage
import sharding.metrics
import sharding.telemetry.build
import sharding.telemetry.host
from sharding.telemetry.declare import metrics_table

DECLARING = (  # imported, they declare theirs
    cluster.jobs.evaluation, cluster.monitor.page, pretrain.metrics, pretrain.telemetry.gpu_usage, sharding.metrics,
    sharding.telemetry.build, sharding.telemetry.host,
)  # fmt: skip
README = Path(__file__).parents[2] / "cluster" / "README.md"
BEGIN, END = "<!-- metrics: written by tests/cluster/test_metrics_table.py -->\n", "<!-- end of metrics -->\n"


def with_table(text: str) -> str:
    """The README with the table of the metrics that are declared."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{metrics_table()}\n{END}{after}"


def test_the_readme_has_the_table_of_all() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text), "write it: python -m tests.cluster.test_metrics_table"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
