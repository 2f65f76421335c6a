"""`reelscale monitor`: what is written, and what is refused before anything is started."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.monitor.prometheus.firing_alerts import watch
from sharding.base.errors import UserError
from tests.cluster.conftest import Say
from tests.support.commands import refused, succeeded


@pytest.fixture()
def written(say: Say, tmp_path: Path) -> Path:
    """A folder for named targets with a token, and for Kubernetes."""
    (tmp_path / "token").write_text("secret")
    words = ["--targets", "targets", "--target", "node7:9480", "--target", "https://node8:9481"]
    more = ["--kubernetes", "training", "--token-file", "token", "--ca-file", "token", "--write-only"]
    succeeded(say("monitor", "up", *words, *more))
    return tmp_path / "monitoring"


def test_what_is_scraped(written: Path) -> None:
    config = yaml.safe_load((written / "prometheus.yml").read_text())
    by_file, static, pods = config["scrape_configs"]
    assert by_file["file_sd_configs"][0]["files"] == [f"{written.parent}/targets/*.json"]
    assert (written.parent / "targets").is_dir()
    assert [(each["targets"], each["labels"]["__scheme__"]) for each in static["static_configs"]] == [
        (["node7:9480"], "http"),
        (["node8:9481"], "https"),
    ]
    assert pods["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["training"]}}]
    for job in (by_file, static, pods):
        assert job["authorization"] == {"credentials_file": f"{written.parent}/token"}
        assert job["tls_config"] == {"ca_file": f"{written.parent}/token"}
        assert job["honor_labels"] is True
    assert "secret" not in (written / "prometheus.yml").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool; what is written is read above")
def test_promtool_takes_what_is_written(written: Path) -> None:
    config = yaml.safe_load((written / "prometheus.yml").read_text())
    del config["scrape_configs"][2]  # Debian's promtool does not know Kubernetes
    (written / "prometheus.yml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=written, capture_output=True, text=True
    )
    assert done.returncode == 0 and "2 rule files found" in done.stdout, done.stdout + done.stderr


def test_what_grafana_is_started_with(written: Path) -> None:
    (provider,) = yaml.safe_load((written / "grafana/provisioning/dashboards/reelscale.yml").read_text())["providers"]
    boards = sorted(Path(provider["options"]["path"]).iterdir())
    assert [board.name for board in boards] == ["cluster.json", "data.json", "run.json", "sharding.json"]
    assert all(json.loads(board.read_text())["panels"] for board in boards)
    (source,) = yaml.safe_load((written / "grafana/provisioning/datasources/reelscale.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090" and source["type"] == "prometheus"


def test_writing_says_what_to_start(say: Say) -> None:
    made = succeeded(say("monitor", "up", "--write-only", "--port", "9999"))
    assert "--web.listen-address=127.0.0.1:9999" in made.stdout and "GF_PATHS_PROVISIONING=" in made.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--token-file", "none"], ["no such file", "--token-file none"]),
        (["--user", "me"], ["user and password_file belong together"]),
        (["--token-file", "t", "--user", "me", "--password-file", "p"], ["a token or a password"]),
        (["--cert-file", "c"], ["cert_file and key_file belong together"]),
        (["--folder", "~nosuch/x"], ["home directory", "~nosuch/x", "without ~"]),
        (["--target", "node7"], ["target", "'node7'"]),
        (["--kubernetes", "No Namespace"], ["kubernetes", "'No Namespace'"]),
        (["--folder", "/proc/none"], ["cannot be written to", "--folder"]),
    ],
)
def test_mistakes(say: Say, words: list[str], parts: list[str]) -> None:
    refused(say("monitor", "up", "--write-only", "--targets", "targets", *words), *parts)


def test_no_server_and_a_port_that_is_taken(say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    refused(say("monitor", "up"), "Prometheus is not installed", "apt-get install prometheus", "--write-only")
    refused(say("monitor", "up", "--prometheus", "none"), "no such program", "--prometheus none")
    program = tmp_path / "prometheus"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(say("monitor", "up", "--prometheus", program, "--port", port), f"127.0.0.1:{port}", "--port")
    assert not (tmp_path / "monitoring").exists()


@pytest.fixture()
def prometheus() -> Iterator[tuple[str, dict[str, Any]]]:
    """What answers as Prometheus' API does, by a dictionary."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = answers[self.path.removeprefix("/api/v1/").partition("?")[0]]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "success", "data": data}).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


def rule(name: str, severity: str, state: str, run: str = "a\x1b[2Jb") -> dict[str, Any]:
    alert = {
        "labels": {"alertname": name, "severity": severity, "run": run},
        "annotations": {"summary": f"{name} of {run}", "description": "bad", "runbook": "do this"},
        "state": state,
        "activeAt": "2026-01-31T12:00:00Z",
    }
    return {"name": name, "alerts": [alert]}


def test_alerts(say: Say, prometheus: tuple[str, dict[str, Any]]) -> None:
    url, answers = prometheus
    answers["targets"] = {
        "activeTargets": [{"labels": {"job": "reelscale"}, "health": "up"}, {"labels": {}, "health": "up"}]
    }
    answers["rules"] = {"groups": [{"rules": [{"name": "Other", "alerts": []}]}]}
    refused(say("monitor", "alerts", "--url", url), "no alerts of Reelscale", "monitor up")
    rules = [rule("ReelscaleA", "warning", "firing"), rule("ReelscaleB", "critical", "firing")]
    answers["rules"]["groups"].append({"rules": [*rules, rule("ReelscaleC", "critical", "pending")]})
    shown = succeeded(say("monitor", "alerts", "--url", url)).stdout
    assert shown.index("critical: ReelscaleB") < shown.index("warning: ReelscaleA")
    assert "do this" in shown and "ReelscaleC" not in shown and "\x1b" not in shown
    state = json.loads(succeeded(say("monitor", "alerts", "--url", url, "--json")).stdout)
    assert [each["name"] for each in state["firing"]] == ["ReelscaleB", "ReelscaleA"]
    assert (state["rules"], state["targets"], state["answering"]) == (3, 1, 1)
    answers["rules"] = {"groups": [{"rules": [rule("ReelscaleC", "critical", "pending")]}]}
    quiet = succeeded(say("monitor", "alerts", "--url", url)).stdout
    assert quiet == "no alert fires: 1 rules watch 1 processes, of which 1 answer\n"


def test_a_prometheus_that_does_not_answer(say: Say) -> None:
    refused(say("monitor", "alerts", "--url", "http://127.0.0.1:9"), "cannot be asked", "monitor up", "--url")
    for url in ("nonsense", "http://127.0.0.1:port"):
        refused(say("monitor", "alerts", "--url", url), "cannot be asked", url)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.0 200 OK\r\n\r\n[]", b""])
def test_what_answers_is_no_prometheus(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                client.recv(4096)
                client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(UserError, match="cannot be asked"):
            watch(f"http://127.0.0.1:{server.getsockname()[1]}")
