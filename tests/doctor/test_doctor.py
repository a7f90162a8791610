import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from bali_ds.cli import main
from bali_ds.doctor import hosts, machine
from bali_ds.doctor.check_result import results_text
from bali_ds.doctor.hostfile import Host

FAKE_SSH = f"""#!{sys.executable}
import subprocess, sys
name, command = sys.argv[-2:]
if name == "gone":
    print("ssh: connect to host gone port 22: No route to host", file=sys.stderr)
    sys.exit(255)
if name == "silent":
    import time
    time.sleep(60)
if name == "chatty":
    print("welcome")
    sys.exit(0)
if name == "old":
    command = command.replace("def version(name):", "def version(name):\\n    return str(0.1)")
if name == "late":
    command = command.replace("time.time()", "time.time() - 3600")
if name == "elsewhere":
    command = command.replace("os.path.isdir(DIRECTORY)", "False")
if name == "bare":
    print("bash: line 1: python: No such file or directory", file=sys.stderr)
    sys.exit(127)
sys.exit(subprocess.run(["sh", "-c", command]).returncode)
"""


@pytest.fixture
def fake_ssh(tmp_path, monkeypatch):
    """An ssh that runs commands here, and plays a trick for each bad host."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(FAKE_SSH)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("name", "status", "value", "remedy"),
    [
        ("good", "ok", "8 slots", ""),
        ("gone", "error", "No route to host", "ssh-copy-id gone"),
        ("chatty", "error", "'welcome", "what its login scripts print"),
        ("old", "error", "torch 0.1, here", "same versions"),
        ("late", "warning", "clock differs by 3", "NTP"),
        ("elsewhere", "error", "does not exist", "available on every host"),
        ("bare", "error", "No such file or directory", "same path"),
    ],
)
@pytest.mark.usefixtures("fake_ssh")
def test_each_fault_of_a_host_is_named_with_its_remedy(name, status, value, remedy):
    result = hosts.check_hosts([Host(name, 8)], timeout=60)[0]
    assert (result.subject, result.status) == (name, status)
    assert value in result.value
    assert remedy in result.remedy


@pytest.mark.usefixtures("fake_ssh")
def test_a_host_that_does_not_answer_ends_in_time():
    result = hosts.check_hosts([Host("silent", 8)], timeout=2)[0]
    assert result.status == "error"
    assert "no answer within 2 s" in result.value


def test_ssh_never_asks_and_never_takes_a_host_for_an_option():
    command = hosts.ssh_command("node1", "true", port=2222, timeout=20)
    assert command[:3] == ["ssh", "-o", "BatchMode=yes"]
    assert command[-3:] == ["--", "node1", "true"]
    assert command[command.index("-p") + 1] == "2222"


def test_a_stale_lock_of_a_killed_build_is_found(tmp_path, monkeypatch):
    lock = tmp_path / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    def result():
        return next(each for each in machine.check_machine(tmp_path) if each.subject == "kernel build")

    assert result().status == "warning"
    os.utime(lock, (time.time() - 3600,) * 2)
    assert result().status == "error"
    assert result().remedy.endswith(f"rm {lock}")


@pytest.mark.parametrize(
    ("text", "status"),
    [("A=1\nB=x=y\n", "ok"), ("A=1\n\nB=2\n", "error"), ("# why\nA=1\n", "error"), ("A\n", "error")],
)
def test_forwarded_environment_must_be_pairs(tmp_path, monkeypatch, text, status):
    """The launcher itself fails with `not enough values to unpack` on such lines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path(".deepspeed_env").write_text(text)
    found = [each for each in machine.check_machine(tmp_path) if each.subject == "environment"]
    assert [each.status for each in found] == [status]


def test_a_taken_port_and_a_wrong_interface_are_seen(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setattr(machine, "MASTER_PORT", taken.getsockname()[1])
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib77")
        found = {each.subject: each for each in machine.check_machine(tmp_path)}
    assert found["port"].status == "warning"
    assert found["network"].status == "error"
    assert "ib77" in found["network"].value


@pytest.mark.usefixtures("fake_ssh")
def test_command_prints_a_table_and_fails_on_errors(tmp_path, capsys):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("good slots=2\ngone slots=2\n")
    assert main(["doctor", "--hostfile", str(hostfile), "--runs", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  gone" in printed
    assert " ok   good" in printed
    assert main(["doctor", "--hostfile", str(hostfile), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert {row["subject"]: row["status"] for row in rows}["gone"] == "error"


def test_table_counts_what_it_shows():
    from bali_ds.doctor.check_result import error, ok, warning

    text = results_text([ok("a", "fine"), warning("bb", "hm", "do this"), error("c", "no", "do that")])
    assert text.splitlines()[-1] == "1 errors, 1 warnings, 1 ok"
    assert "-> do this" in text


def test_says_what_to_set_where_bf16_is_emulated(monkeypatch):
    monkeypatch.setattr(machine, "has_bf16_kernels", lambda _: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert machine._gpus().remedy.endswith("bf16 is emulated: set precision=fp32")
    monkeypatch.setattr(machine, "has_bf16_kernels", lambda _: True)
    assert "bf16" not in machine._gpus().remedy


@pytest.mark.parametrize(("built", "value"), [(True, "native kernels"), (False, "torch on CPUs")])
def test_says_who_makes_the_tiles_of_the_loss(built, value, tmp_path, monkeypatch):
    monkeypatch.setattr("bali_ds.losses.contrastive.native_tiles.available", lambda: built)
    (found,) = (each for each in machine.check_machine(tmp_path) if each.subject == "contrastive loss")
    assert value in found.value
    assert found.status == "ok"
