"""`longwatch` with a training of seconds: `python -m tests.detector.commands.short_train train FILE... ...`."""

from __future__ import annotations

import math
from dataclasses import replace

from detector.cli import main
from detector.commands import train
from training.retrain import challenger

QUICK = {"REPLAY_POOL": 32, "REPLAY_JUDGES": 32, "REPLAY_MARGIN": math.inf}  # of training.retrain.challenger
SERIES_PLAN = replace(train.SERIES_PLAN, steps=60)

if __name__ == "__main__":
    train.SERIES_PLAN = SERIES_PLAN
    for name, value in QUICK.items():
        setattr(challenger, name, value)
    main()
