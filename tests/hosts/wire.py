"""A wire between two bridges that takes its time: `python wire.py SECONDS BRIDGE BRIDGE`, in the namespace of the
bridges.

Frames go through two TAP devices and this process, each as late as was asked: many kernels are built without netem.
"""

import fcntl
import os
import selectors
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def tap(name: str, bridge: str) -> int:
    """A new TAP device on a bridge; returns its file descriptor, which gives and takes whole frames."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "master", bridge, "up"], check=True)
    return device


def relay(delay_s: float, ends: list[int]) -> None:
    """Passes frames on, ``delay_s`` after they came, in order, for ever."""
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    late: deque[tuple[float, int, bytes]] = deque()
    ready = selectors.DefaultSelector()
    for end in ends:
        ready.register(end, selectors.EVENT_READ)
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else None
        for key, _ in ready.select(wait):
            frame = os.read(key.fd, 65536)
            late.append((time.monotonic() + delay_s, other[key.fd], frame))
        while late and late[0][0] <= time.monotonic():
            _, end, frame = late.popleft()
            try:
                os.write(end, frame)
            except OSError:  # a full queue drops, as a wire does; TCP sends again
                continue


if __name__ == "__main__":
    relay(float(sys.argv[1]), [tap(f"{name}-tap{i}", name) for i, name in enumerate(sys.argv[2:])])
