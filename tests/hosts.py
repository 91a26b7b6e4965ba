"""Machines of their own on this one: namespaces with an address, processes, home, /tmp and sshd of their own.

They are in the network 192.0.2.0/24 (RFC 5737), which no real machine is in, on a bridge in the namespace of
the first, the desk: the one somebody types on. Killing a host ends all its processes and takes its link away,
as a power cut does. All of it is gone with the process that made it, also when that is killed.

Needs Linux, root, and the programs in `NEEDED`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
NEEDED = ("unshare", "nsenter", "setpriv", "ip", "mount", "sshd", "ssh", "ssh-keygen", "rsync")
USER = "palaver"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENV = {**os.environ, "PATH": _PATH}
"""Without the folders of administrators on PATH, too."""

_BOOT = """
set -e
hostname "$NAME"
for place in /dev/shm /run /opt; do mount -t tmpfs tmpfs $place; done
mkdir /run/sshd /opt/home /opt/palaver /opt/bin /opt/uv-cache /opt/checkout
mount --bind "$DISK" /opt/palaver
mount --bind "$CHECKOUT" /opt/checkout
if [ -n "$UV" ]; then
  touch /opt/bin/uv
  mount --bind "$UV" /opt/bin/uv
  mount --bind "$UV_CACHE" /opt/uv-cache
fi
mount --bind "$HOME_FOLDER" /opt/home
mount --bind "$PASSWD" /etc/passwd
mount --bind "$RESOLV" /etc/resolv.conf
ip link set lo up
mkdir -p "$TEMPORARY"
mount --bind "$TEMPORARY" /tmp
/usr/sbin/sshd -D -f /opt/home/sshd_config &
echo ready
wait
"""

_SSHD = """
HostKey /opt/home/host_key
AuthorizedKeysFile /opt/home/.ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
MaxStartups 100
PidFile none
Subsystem sftp internal-sftp
"""

# What a login shell reads. The packages are those of this machine's cache: no host has a way out. Ray's own
# settings take half a minute to find out that a host is gone.
_PROFILE = f"""
export PATH=/opt/bin:{_PATH}
export PYTHON={sys.base_prefix}/bin/python3
export UV_OFFLINE=1 UV_CACHE_DIR=/opt/uv-cache UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
export PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=3
"""


@dataclass(frozen=True, slots=True)
class Host:
    """One machine. `disk` is its folder /opt/palaver, as it is seen from outside."""

    address: str
    disk: Path
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """The first of its processes, as it is seen from outside."""
        (child,) = psutil.Process(self.process.pid).children()
        return child.pid

    def command(self, line: str) -> list[str]:
        """What runs a line of bash on it, in a login shell."""
        return [
            *("nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts", "--"),
            *("env", "-i", "HOME=/opt/home", f"USER={USER}", "TERM=dumb", "bash", "--login", "-c", line),
        ]

    def run(self, line: str, within_s: float = 120) -> str:
        """What it printed, on both streams. Raises AssertionError when it fails, with that."""
        done = subprocess.run(
            self.command(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def kill(self) -> None:
        """Cut its power."""
        self.process.kill()
        self.process.wait()


def missing() -> str:
    """Why there can be no hosts here; empty when there can."""
    if sys.platform != "linux":
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "namespaces with addresses of their own need root"
    without = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
    if without:
        return f"{', '.join(without)} not installed"
    tried = subprocess.run(
        [*_unshare(), "sh", "-c", "mount -t tmpfs tmpfs /opt && ip link add name a type bridge"],
        env=_ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip()


@contextmanager
def hosts(folder: Path, count: int) -> Generator[tuple[Host, list[Host]]]:
    """The desk, at 192.0.2.1, and `count` hosts at 192.0.2.10 and on, which it reaches by ssh.

    `folder` gets their files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("id_ed25519", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with ExitStack() as stack:
        desk = stack.enter_context(_host(folder, "desk", "192.0.2.1"))
        _in_net(desk, "ip link add name bridge0 type bridge")
        _in_net(desk, f"ip address add {desk.address}/24 dev bridge0")
        _in_net(desk, "ip link set bridge0 up")
        others: list[Host] = []
        for number in range(count):
            host = stack.enter_context(_host(folder, f"host-{number}", f"192.0.2.{10 + number}"))
            others.append(host)
            _in_net(desk, f"ip link add port{number} type veth peer name eth0 netns {host.pid}")
            _in_net(desk, f"ip link set port{number} master bridge0 up")
            _in_net(host, f"ip address add {host.address}/24 dev eth0")
            _in_net(host, "ip link set eth0 up")
            _in_net(host, f"ip route add default via {desk.address}")
        yield desk, others


@contextmanager
def _host(folder: Path, name: str, address: str) -> Generator[Host]:
    own = folder / name
    home, disk = own / "home", own / "disk"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    disk.mkdir()
    shutil.copy(folder / "host_key", home)
    shutil.copy(folder / "id_ed25519", home / ".ssh")
    shutil.copy(folder / "id_ed25519.pub", home / ".ssh" / "authorized_keys")
    (home / "sshd_config").write_text(_SSHD)
    (home / ".profile").write_text(_PROFILE)
    (home / ".bashrc").touch()
    passwd = own / "passwd"
    passwd.write_text(f"{USER}:*:0:0::/opt/home:/bin/bash\n" + Path("/etc/passwd").read_text())
    # No server answers here; to find that out of one elsewhere takes 20 s, each time.
    resolv = own / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\n")
    uv, cache = _uv()
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *_unshare(), "bash", "-c", _BOOT],
        env={
            "PATH": _PATH,
            "NAME": name,
            "DISK": str(disk),
            "HOME_FOLDER": str(home),
            "PASSWD": str(passwd),
            "RESOLV": str(resolv),
            "TEMPORARY": str(own / "tmp"),
            "CHECKOUT": str(ROOT),
            "UV": uv,
            "UV_CACHE": cache,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield Host(address, disk, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _unshare() -> list[str]:
    return [
        *("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc"),
        "--kill-child=KILL",
    ]


def _in_net(host: Host, command: str) -> None:
    subprocess.run(["nsenter", "--target", str(host.pid), "--net", *command.split()], env=_ENV, check=True)


def _uv() -> tuple[str, str]:
    """The uv that `make install` used here, and its cache; both empty without one."""
    own = ROOT / ".uv" / "bin" / "uv"
    uv = shutil.which("uv") or (str(own) if own.exists() else "")
    if not uv:
        return "", ""
    home = os.environ.get("HOME", "/nonexistent")
    cache = os.environ.get("XDG_CACHE_HOME", f"{home}/.cache")
    for each in (os.environ.get("UV_CACHE_DIR", ""), f"{cache}/uv", str(ROOT / ".uv" / "cache")):
        with suppress(OSError):
            if each and any(Path(each).iterdir()):
                return uv, each
    return "", ""
