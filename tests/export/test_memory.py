"""A checkpoint four times as large as the memory that its consolidation may take."""

import subprocess
import sys
from collections import OrderedDict

import torch

NUMBERS = 32 * 2**20
ALLOWED = 4 * NUMBERS // 4

SCRIPT = """
import re, sys, threading, time
from pathlib import Path
import torch
from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.export.weights import verify_weights, write_weights

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

import deepspeed  # its own weight does not count
before, peak = anonymous(), 0

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
tensors = read_checkpoint(Path(sys.argv[1]))
files = write_weights(Path(sys.argv[2]), "model", tensors, torch.float16)
assert verify_weights(files, tensors, torch.float16) == len(tensors)
print("GREW", max(peak, anonymous()) - before)
"""


def test_consolidation_takes_a_quarter_of_the_checkpoint_at_most(tmp_path):
    checkpoint = tmp_path / "step-00000001"
    checkpoint.mkdir()
    shapes = OrderedDict(large=torch.Size([NUMBERS // 2]), matrix=torch.Size([4096, NUMBERS // 2 // 4096]))
    model = {"module": OrderedDict(), "buffer_names": [], "param_shapes": [shapes], "shared_params": {}}
    torch.save(model, checkpoint / "mp_rank_00_model_states.pt")
    for rank in range(2):
        state = {"zero_stage": 2, "partition_count": [2], "single_partition_of_fp32_groups": [torch.ones(NUMBERS // 2)]}
        torch.save({"optimizer_state_dict": state}, checkpoint / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grew = int(done.stdout.split("GREW")[1])
    assert grew < ALLOWED, f"{grew / 2**20:.0f} MiB for a checkpoint of {4 * NUMBERS / 2**20:.0f} MiB"
    print(f"{grew / 2**20:.0f} MiB for a checkpoint of {4 * NUMBERS / 2**20:.0f} MiB")
