"""Several hosts on one machine: namespaces of network, processes, host name and shared memory, joined by a bridge.

Each host has an address, a name, loopback, processes and a folder of its own, which stands for its disk. Needs root
on Linux; `require_hosts` skips a test where that is not to be had.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import pytest

ROOT = Path(__file__).parents[3]
# What a host's own name resolves to on it: its address, 127.0.1.1 as Debian has it, 127.0.0.1.
Names = Literal["network", "debian", "loopback"]

_LOCKS = Path("/run/reelscale-hosts")  # a lock a network: who holds it owns hostsNUMBER; it ends with its process
_NETWORKS = range(1, 250)
# Without a name server, as one out of reach costs seconds a question. SIGCHLD ignored, which exec hands on: the kernel
# reaps orphans, as an init would.
_INIT = """
hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts && ip link set lo up || exit 1
mount --bind /dev/null /etc/resolv.conf || exit 1
trap "" CHLD
echo ready
exec sleep infinity
"""


class HostProcess(subprocess.Popen[bytes]):
    """A process on a host; signals go to it, not to the `nsenter` that started it. Its pids are the test's."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the command itself."""
        inner = self.inner
        if inner is not None:
            _signal([inner], sig)
            self.follow(sig)

    def follow(self, sig: int) -> None:
        """Let the `nsenter`, which stops when its command is stopped, go on where the command does, or has ended."""
        if sig in (signal.SIGCONT, signal.SIGKILL) and self.poll() is None:
            _signal([self.pid], signal.SIGCONT)

    @property
    def inner(self) -> int | None:
        """The command's pid as the test sees it; None once it has ended."""
        deadline = time.monotonic() + 30
        while self.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
                if children:
                    return int(children[0])
            time.sleep(0.01)
        return None


class Host:
    """One host: `address` on the network `hosts` made, `disk` its folder; ways to break it, and to mend it."""

    def __init__(self, network: int, number: int, name: str, disk: Path, hosts_file: Path) -> None:
        self.name, self.address, self.disk = name, f"10.77.{network}.{number + 1}", disk
        self._bridge, self._link = f"hosts{network}", f"hosts{network}-{number}"
        self._hardware = f"02:00:0a:4d:{network:02x}:{number + 1:02x}"
        self._hosts_file, self._gateway = hosts_file, f"10.77.{network}.1"
        self._init: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._started: list[HostProcess] = []

    def start(self) -> None:
        """Boot it: also again, after `kill`. Its disk is as it was."""
        for folder in ("home", "tmp"):
            (self.disk / folder).mkdir(parents=True, exist_ok=True)
        apart = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            [*_dying_with_us(), *apart, "sh", "-c", _INIT, "sh", self.name, str(self._hosts_file)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._init.stdout is not None and self._init.stderr is not None
        if self._init.stdout.readline() != b"ready\n":
            self._init.wait()
            raise OSError(f"{self.name} did not start: {self._init.stderr.read().decode(errors='replace').strip()}")
        self._pid = _children(self._init.pid)[0]
        with contextlib.suppress(subprocess.CalledProcessError):  # of a host just killed, which the kernel still clears
            _ip("link", "delete", self._link)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        _ip("link", "set", self._link, "master", self._bridge, "up")
        inside = ("nsenter", "-t", str(self._pid), "-n", "ip")
        for words in (
            ("link", "set", "eth0", "address", self._hardware),  # the same after a boot, as others still know it
            ("address", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", self._gateway),
        ):
            _call(*inside, *words)

    def command(self, command: Sequence[str | Path], folder: Path | None = None) -> list[str]:
        """The words that run `command` on this host, in `folder` (its disk)."""
        enter = ["nsenter", "-t", str(self._pid), "-m", "-u", "-i", "-n", "-p", "--"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(folder or self.disk), *map(str, command)]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The test's environment for a process here: without its clusters and secrets, with the disk's folders."""
        left_out = ("AWS_", "RAY_", "GLOO_", "NCCL_", "XDG_")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        folders = {"HOME": str(self.disk / "home"), "TMPDIR": str(self.disk / "tmp")}
        ray = {"RAY_TMPDIR": str(self.disk / "tmp")}
        programs = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        own = {"HOSTNAME": self.name, "PATH": programs, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return variables | folders | ray | own | dict(more or {})

    def popen(
        self,
        command: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        output: IO[Any] | int | None = None,
        folder: Path | None = None,
    ) -> HostProcess:
        """Start a command here, its output and errors to `output`. It ends with the thread that calls this."""
        process = HostProcess(
            [*_dying_with_us(), *self.command(command, folder)], env=self.environment(env), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT if output is not None else None,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
        """Run a command here to its end, which must be a good one: its output."""
        with tempfile.TemporaryFile() as output:
            code = self.popen(command, env, output).wait(timeout=200)
            output.seek(0)
            text = output.read().decode(errors="replace")
        assert code == 0, f"{self.name}: {command}: exit {code}\n{text}"
        return text

    def processes(self) -> dict[int, str]:
        """Pid, as the test sees it, and command line of all that lives here, but the host's own init."""
        if self._init is None:
            return {}
        living = {}
        here = _namespace(self._pid)
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            with contextlib.suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and pid != self._pid and here and _namespace(pid) == here:
                    living[pid] = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
        return living

    def kill(self) -> None:
        """The node's death: kill -9 of everything on it at once. `unplug` before, and nobody hears of it."""
        if self._init is None:
            return
        _signal([self._pid], signal.SIGKILL)
        for process in self._started:
            process.follow(signal.SIGKILL)
        self._init.kill()
        self._init.wait()
        for pipe in (self._init.stdout, self._init.stderr):
            assert pipe is not None
            pipe.close()
        self._init = None

    def freeze(self) -> None:
        """The node hangs: SIGSTOP to all that runs on it. Its kernel still answers."""
        stopped: set[int] = set()
        while new := self.processes().keys() - stopped:
            _signal(new, signal.SIGSTOP)
            stopped |= new

    def thaw(self) -> None:
        """Let it go on."""
        _signal(self.processes(), signal.SIGCONT)
        for process in self._started:
            process.follow(signal.SIGCONT)

    def unplug(self) -> None:
        """Cut its link: nothing comes or goes, and nobody is told."""
        _ip("link", "set", self._link, "down")

    def plug(self) -> None:
        """Heal its link."""
        _ip("link", "set", self._link, "up")

    def slow(self, rate: str) -> None:
        """Let its link carry no more than `rate`, as tc writes it ("2mbit"), in each direction."""
        limits = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
        _call("tc", "qdisc", "replace", "dev", self._link, *limits)
        _call("nsenter", "-t", str(self._pid), "-n", "tc", "qdisc", "replace", "dev", "eth0", *limits)

    def fast(self) -> None:
        """Take `slow` back."""
        _call("tc", "qdisc", "delete", "dev", self._link, "root")
        _call("nsenter", "-t", str(self._pid), "-n", "tc", "qdisc", "delete", "dev", "eth0", "root")


@contextlib.contextmanager
def hosts(count: int, names: Names = "network", prefix: str = "node") -> Iterator[list[Host]]:
    """`count` hosts that reach each other, and the test's own machine at `gateway(host)`; all end with the `with`.

    They are called node0, node1, …; `names` says what a host's own name resolves to on it.
    """
    with _network() as network, tempfile.TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True) as folder:
        numbers = range(1, count + 1)
        everyone = [Host(network, number, f"{prefix}{number - 1}", Path(folder) / f"{prefix}{number - 1}",
                         Path(folder) / f"{prefix}{number - 1}.hosts") for number in numbers]  # fmt: skip
        own = {"debian": "127.0.1.1", "loopback": "127.0.0.1"}
        for host in everyone:
            lines = ["127.0.0.1 localhost"]
            lines += [f"{own.get(names, host.address) if host is other else other.address} {other.name}"
                      for other in everyone]  # fmt: skip
            host._hosts_file.write_text("\n".join(lines) + "\n")
        try:
            for host in everyone:
                host.start()
            yield everyone
        finally:
            for host in everyone:
                host.kill()


def gateway(host: Host) -> str:
    """The address at which a host reaches the test's own machine, for servers of the test."""
    return host._gateway


def require_hosts() -> None:
    """Skip the test where this machine cannot have several hosts."""
    reason = _refusal()
    if reason:
        pytest.skip(f"several hosts on one machine: {reason}")


@functools.cache
def _refusal() -> str:
    """Why namespaces or links cannot be made here; "" where they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    missing = [name for name in ("ip", "tc", "nsenter", "unshare", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt install iproute2 util-linux"
    try:
        with hosts(1, prefix="probe") as (host,):
            host.run(["true"])
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        return f"namespaces and links are not permitted here ({error})"
    return ""


@contextlib.contextmanager
def _network() -> Iterator[int]:
    """A network's number, with its bridge hostsNUMBER, which has 10.77.NUMBER.1 on this machine."""
    _LOCKS.mkdir(exist_ok=True)
    for number in _NETWORKS:
        with (_LOCKS / str(number)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another test's
            _remove(number)  # of a test that was killed: its hosts died with it
            bridge = f"hosts{number}"
            try:
                # An address of its own: else that of a link, and another when that link goes, of which hosts hear late.
                _ip("link", "add", bridge, "address", f"02:00:0a:4d:{number:02x}:ff", "type", "bridge")
                _ip("address", "add", f"10.77.{number}.1/24", "dev", bridge)
                _ip("link", "set", bridge, "up")
                yield number
            finally:
                _remove(number)
            return
    raise RuntimeError("no network is free for another test")


def _remove(number: int) -> None:
    """Remove a network's bridge and links, if any."""
    for path in [*Path("/sys/class/net").glob(f"hosts{number}-*"), Path(f"/sys/class/net/hosts{number}")]:
        if path.exists():
            with contextlib.suppress(subprocess.CalledProcessError):  # gone meanwhile, with its host
                _ip("link", "delete", path.name)


def _dying_with_us() -> list[str]:
    """What a command begins with that the kernel is to kill once the thread that starts it ends."""
    return ["setpriv", "--pdeathsig", "KILL", "--"]


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _ip(*words: str) -> None:
    _call("ip", *words)


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _namespace(pid: int) -> str:
    """The name of a process' namespace of processes; "" where it has gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115, as it is no path that could be resolved
    except OSError:
        return ""
