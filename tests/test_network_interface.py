"""The interface that gloo is told to use."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from bali_ds import network_interface
from bali_ds.network_interface import choose_interface, interface_towards

OUTWARD = {
    each.address: name
    for name, addresses in psutil.net_if_addrs().items()
    for each in addresses
    if each.family == socket.AF_INET and not each.address.startswith("127.")
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "203.0.113.7")


@pytest.mark.skipif(not OUTWARD, reason="this machine has no interface but the loopback")
def test_an_address_of_this_host_is_at_its_own_interface():
    address, name = next(iter(OUTWARD.items()))
    assert interface_towards(address) == name


def test_a_name_of_the_loopback_is_reached_over_the_default_route(monkeypatch):
    addresses = {"127.0.1.1": "127.0.1.1", "198.51.100.1": "10.0.0.2"}
    monkeypatch.setattr(network_interface, "_own_address", addresses.get)
    interfaces = {"lo": ["127.0.0.1", "127.0.1.1"], "docker0": ["172.17.0.1"], "eth1": ["fe80::1%eth1", "10.0.0.2"]}
    listed = {name: [SimpleNamespace(address=each) for each in own] for name, own in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: listed)
    assert interface_towards("127.0.1.1") == "eth1"
    addresses["203.0.113.7"] = "172.17.0.1"
    assert choose_interface() == os.environ["GLOO_SOCKET_IFNAME"] == "docker0"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth7"}, (None, "eth7")),
        ({"MASTER_ADDR": "127.0.0.1"}, (None, None)),
        ({"NCCL_SOCKET_IFNAME": "=lo"}, ("lo", "lo")),
    ],
)
def test_what_the_user_chose_stays(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (choose_interface(), os.environ.get("GLOO_SOCKET_IFNAME")) == expected
