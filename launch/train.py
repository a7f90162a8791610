"""The main job, from a recipe to a trained and evaluated encoder; `bali_ds.cli.train` parses the arguments.

deepspeed [--hostfile HOSTS] launch/train.py --config RECIPE [--resume auto|never] [key=value ...]
"""

from bali_ds.cli.train import run_process

if __name__ == "__main__":
    run_process()
