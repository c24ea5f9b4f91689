"""The engine, and the daemon that drives it. Stands on `connectors` and `training`.

For notebooks and stream processors (docs/embedding.md):

    from detector import Engine, EventBatch, describe

    engine = Engine()
    step = engine.step(EventBatch.of([("web-1", 1_700_000_000_000_000_000, {"cpu": 0.4})]))
    print(step.scores.score, *map(describe, step.alerts))

`import detector` alone loads none of these.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from connectors.batches import Alert, EventBatch, Scores
    from detector.engine.engine import Engine, EngineSettings, Step
    from detector.observability.alert_text import describe
    from detector.scoring.incidents import AlertRules

__version__ = "0.1.0"

_MODULES = {
    "Alert": "connectors.batches",
    "AlertRules": "detector.scoring.incidents",
    "Engine": "detector.engine.engine",
    "EngineSettings": "detector.engine.engine",
    "EventBatch": "connectors.batches",
    "Scores": "connectors.batches",
    "Step": "detector.engine.engine",
    "describe": "detector.observability.alert_text",
}
__all__ = ["Alert", "AlertRules", "Engine", "EngineSettings", "EventBatch", "Scores", "Step", "describe"]

if not TYPE_CHECKING:  # else every name would be one

    def __getattr__(name: str) -> Any:
        """Import what is handed on when it is first used."""
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
