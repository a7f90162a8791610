"""The network interface over which this host reaches the others."""

import os
import socket

import psutil

# Any address of another network shows the default route; nothing is sent (TEST-NET-2, RFC 5737).
_ELSEWHERE = "198.51.100.1"


def choose_interface() -> str | None:
    """Let gloo use the interface towards MASTER_ADDR and return it; None where the choice is not ours.

    By itself gloo takes the interface that the host's name resolves to, on many systems the loopback, and hosts cannot
    meet. Call it before the process group is made. It leaves GLOO_SOCKET_IFNAME as it is if it is set, takes
    NCCL_SOCKET_IFNAME if that names one interface, and does nothing where ranks meet at the loopback.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost", "::1"):
        return None
    named = os.environ.get("NCCL_SOCKET_IFNAME", "").removeprefix("=")
    interface = named if named in psutil.net_if_addrs() else interface_towards(os.environ["MASTER_ADDR"])
    if interface:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    return interface


def interface_towards(address: str) -> str | None:
    """Return the interface from which an address is reached, that of the default route for an address of this host.

    Args:
        address: a name or an IP address.

    Returns:
        None if nothing but the loopback leads anywhere.
    """
    for target in (address, _ELSEWHERE):
        own = _own_address(target)
        for name, addresses in psutil.net_if_addrs().items():
            if own and name != "lo" and any(each.address.partition("%")[0] == own for each in addresses):
                return name
    return None


def _own_address(target: str) -> str | None:
    """Return the address from which packets to a target would be sent."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return None
