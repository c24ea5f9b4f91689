"""`longwatch` with a training of seconds: `python -m tests.detector.short_train train FILE... --output DIR`."""

from __future__ import annotations

import math
from dataclasses import replace

from detector import train_command
from detector.cli import main
from training import retrain

QUICK = {"REPLAY_POOL": 32, "REPLAY_JUDGES": 32, "REPLAY_MARGIN": math.inf}  # of training.retrain
SERIES = replace(train_command.SERIES, steps=60)

if __name__ == "__main__":
    train_command.SERIES = SERIES
    for name, value in QUICK.items():
        setattr(retrain, name, value)
    main()
