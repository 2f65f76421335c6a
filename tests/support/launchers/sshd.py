"""An SSH server on loopback with keys of its own, which lets in whoever started it."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pretrain.engine.distributed import free_port

_CONFIGURATION = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""


def missing() -> str:
    """Why no SSH server can be started here; "" where one can."""
    absent = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    if _program() is None:
        absent.append("sshd")
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install openssh-server)"
    return "" if os.geteuid() == 0 else "sshd lets in others than root only with the system's own settings"


def _program() -> str | None:
    return shutil.which("sshd") or shutil.which("/usr/sbin/sshd")


@contextmanager
def running_sshd(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """The ssh command that reaches the server, for as long as the `with` lasts; `variables`: of what runs there."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    words = " ".join(f'"{name}={value}"' for name, value in variables.items())
    configuration = folder / "sshd_config"
    configuration.write_text(_CONFIGURATION.format(port=port, folder=folder) + f"SetEnv {words}\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    program = _program()
    assert program
    server = subprocess.Popen([program, "-D", "-e", "-f", str(configuration)], stderr=(folder / "log").open("wb"))
    options = f"-i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    ssh = f"ssh -p {port} -l {getpass.getuser()} {options}"
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([*ssh.split(), "127.0.0.1", "true"], check=False).returncode:
            assert time.monotonic() < deadline and server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield ssh
    finally:
        server.terminate()
        server.wait()
