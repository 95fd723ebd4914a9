"""Nodes with a link each, on one machine: network namespaces joined by a bridge, their egress shaped by tc.

The namespaces have no name and live by this process's file descriptors alone: however it ends, they go with it, and
there is nothing to clean up. The bridge lives in a namespace too, which this process moves to; the machine's own
network is never touched.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

#: Bytes that a frame of a full TCP segment has beside its payload (Ethernet 14, IPv4 20, TCP 20, time stamps 12), and
#: that payload: what shaping charges.
HEADERS, SEGMENT = 66, 1448

CONGESTION = "reno"

_libc = ctypes.CDLL(None, use_errno=True)


class NotAllowed(Exception):
    """This machine has no such links; the text says why."""


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise NotAllowed(f"unshare: {os.strerror(ctypes.get_errno())}")


def enter(namespace: int) -> None:
    """Move the calling thread, and what it starts from now on, to a network namespace."""
    if _libc.setns(namespace, CLONE_NEWNET):
        raise NotAllowed(f"setns: {os.strerror(ctypes.get_errno())}")


def become_root() -> None:
    """Become root of a user namespace where this process is not root already. Before it starts any thread."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        return
    _unshare(CLONE_NEWUSER)
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise NotAllowed(f"user namespace: {error}") from None


def counted(interface: str = "eth0") -> dict[str, int]:
    """Return an interface's counters in the calling process's namespace.

    /proc/net/dev has the numbers of /sys/class/net/*/statistics, and follows the process from namespace to namespace.
    """
    with open("/proc/self/net/dev") as file:
        for line in file:
            name, _, fields = line.partition(":")
            if name.strip() == interface:
                numbers = [int(field) for field in fields.split()]
                return {
                    "received": numbers[0],
                    "sent": numbers[8],
                    "packets_sent": numbers[9],
                    "dropped": numbers[3] + numbers[11],
                }
    raise FileNotFoundError(f"no interface {interface}")


class Links:
    """Nodes 10.0.0.1 and up, each in the namespace `nodes[i]` with an interface eth0 that sends at `gbit` Gbit/s.

    A delay in milliseconds is added to what each node sends.

    Raises NotAllowed.
    """

    def __init__(self, nodes: int, gbit: float, delay: float = 0.0) -> None:
        missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
        if missing:
            raise NotAllowed(f"not installed: {', '.join(missing)} (iproute2)")
        self.nodes: list[int] = []
        # Half a millisecond, and a segment as TCP hands it down with the headers that it is charged for, which would
        # be cut into frames by the processor otherwise. What a burst gains is small beside any message. The queue
        # holds 50 ms.
        self.burst = max(72 << 10, int(gbit * 1e9 / 8 * 5e-4))
        self.limit = int(gbit * 1e9 / 8 * 0.05) + self.burst
        _unshare(CLONE_NEWNET)
        self._switch = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            _call("ip link add switch type bridge")
            _call("ip link set switch up")
            for i in range(nodes):
                self._add(i, gbit, delay)
        except BaseException:
            self.close()
            raise

    def _add(self, i: int, gbit: float, delay: float) -> None:
        _unshare(CLONE_NEWNET)
        node = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.nodes.append(node)
        # The one that every kernel allows in every namespace.
        with open("/proc/sys/net/ipv4/tcp_congestion_control", "w") as file:
            file.write(CONGESTION)
        _call("ip link set lo up")
        enter(self._switch)
        _call(f"ip link add port{i} type veth peer name eth0 netns /proc/{os.getpid()}/fd/{node}")
        _call(f"ip link set port{i} master switch up")
        enter(node)
        _call(f"ip address add 10.0.0.{i + 1}/24 dev eth0")
        _call("ip link set eth0 up")
        shape = f"rate {round(gbit * 1e9)}bit burst {self.burst} limit {self.limit}"
        _call(f"tc qdisc add dev eth0 root handle 1: tbf {shape}")
        if delay:
            _call(f"tc qdisc add dev eth0 parent 1: handle 2: netem delay {delay}ms limit 100000")
        enter(self._switch)

    def charged(self, node: int) -> int:
        """Return the bytes that the shaper of a node has let through: frames as a wire carries them, all headers."""
        enter(self.nodes[node])
        try:
            found: Any = json.loads(_call("tc -s -j qdisc show dev eth0"))
        finally:
            enter(self._switch)
        return int(found[0]["bytes"])

    def close(self) -> None:
        for descriptor in [*self.nodes, self._switch]:
            os.close(descriptor)
        self.nodes = []


def _call(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise NotAllowed(f"{command}: {done.stderr.strip()}")
    return done.stdout
