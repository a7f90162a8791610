"""Cases that rank scripts run and tests compare."""

STAGES = (0, 1, 2, 3)
MICRO_BATCHES = (1, 4)
WORLD_SIZES = (1, 2)
DAMAGES = ("truncated", "missing", "flipped", "marker")
