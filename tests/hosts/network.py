"""Hosts as network namespaces, in a chain: each on a bridge of its own, a slow wire from each bridge to the next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SUBNET = "10.77.0"


def missing() -> str | None:
    """Why there can be no hosts here, with the remedy; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run it as root, or in a container with NET_ADMIN and SYS_ADMIN"
    if shutil.which("ip") is None:
        return "there is no `ip` command: apt-get install iproute2"
    if not Path("/dev/net/tun").exists():
        return "no /dev/net/tun, through which the slow wire goes: load the module tun, or pass the device on"
    tried = subprocess.run(["ip", "netns", "add", "rlhf-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "rlhf-try"], capture_output=True, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Network:
    """``count`` hosts 10.77.0.1, .2, ...; each is ``latency_s`` away from the next, each way."""

    def __init__(self, count: int, latency_s: float) -> None:
        self.prefix = f"rlhf{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self.hosts = [f"{self.prefix}-{i}" for i in range(count)]
        self.wires: list[subprocess.Popen[bytes]] = []
        try:
            self._build(latency_s)
        except BaseException:
            self.remove()
            raise

    def _build(self, latency_s: float) -> None:
        ip("netns", "add", self.switch)
        for i, host in enumerate(self.hosts):
            ip("netns", "add", host)
            ip("-n", self.switch, "link", "add", f"bridge{i}", "type", "bridge")
            ip("-n", self.switch, "link", "set", f"bridge{i}", "up")
            ip("-n", self.switch, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", self.switch, "link", "set", f"port{i}", "master", f"bridge{i}", "up")
            ip("-n", host, "address", "add", f"{self.address(i)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host, "link", "set", device, "up")
            ip("-n", host, "route", "add", "default", "dev", "eth0")
        script = str(Path(__file__).with_name("wire.py"))
        for i in range(1, len(self.hosts)):
            ends = [f"bridge{i - 1}", f"bridge{i}"]
            line = ["ip", "netns", "exec", self.switch, sys.executable, script, str(latency_s), *ends]
            self.wires.append(subprocess.Popen(line))
        self.round_trip_s(0, len(self.hosts) - 1, tries=50)

    def address(self, index: int) -> str:
        """IPv4 address of a host."""
        return f"{SUBNET}.{index + 1}"

    def command(self, index: int, line: Sequence[str]) -> list[str]:
        """The command line that runs ``line`` on a host."""
        return ["ip", "netns", "exec", self.hosts[index], *line]

    def round_trip_s(self, start: int, end: int, tries: int = 5) -> float:
        """Seconds of a TCP connection refused by the other host (one round trip); the least of three that succeed."""
        code = (
            "import socket,sys,time\nbegan=time.monotonic()\n"
            "try: socket.create_connection((sys.argv[1], 9), timeout=2)\n"
            "except ConnectionRefusedError: print(time.monotonic()-began)"
        )
        seconds: list[float] = []
        for _ in range(tries):
            line = self.command(start, [sys.executable, "-S", "-c", code, self.address(end)])
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            seconds += [float(done.stdout)] if done.stdout.strip() else []
            if len(seconds) == 3:
                return min(seconds)
            time.sleep(0.1)
        raise RuntimeError(f"host {end} cannot be reached from host {start}")

    def link(self, index: int, state: str) -> None:
        """Cuts ('down') or heals ('up') a host's link, at the switch: the host sees its cable pulled."""
        ip("-n", self.switch, "link", "set", f"port{index}", state)

    def remove(self) -> None:
        """Takes everything away; the processes on the hosts must have ended."""
        for wire in self.wires:
            wire.kill()
            wire.wait()
        for name in [*self.hosts, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    """`ip ...`; an error says what the kernel said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
