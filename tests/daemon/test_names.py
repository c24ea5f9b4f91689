"""Names that a daemon derives from its settings are unique to worker and group."""

from __future__ import annotations

from pathlib import Path

from detector.checkpointing.changelog_checkpoint import ChangelogCheckpointer
from detector.config.settings import load_settings
from detector.service.factory import build_daemon


def transactional_id(folder: Path, group: str, member: str) -> str:
    """Return the name under which a worker with these settings writes."""
    daemon = build_daemon(
        load_settings(
            None,
            {},
            [
                f"kafka.group_id={group}",
                f"kafka.group_instance_id={member}",
                "kafka.bootstrap_servers=127.0.0.1:1",
                "processing.guarantee=exactly_once",
                f"state.directory={folder / f'{group}@{member}'}",
                "compute.device=cpu",
                "http.port=0",
            ],
        )
    )
    try:
        checkpointer = daemon.checkpointer
        assert isinstance(checkpointer, ChangelogCheckpointer)
        return checkpointer._writer.transactional_id
    finally:
        daemon.shutdown(orderly=False)


def test_workers_of_two_groups_never_share_a_transactional_id(tmp_path: Path) -> None:
    made = [transactional_id(tmp_path, *names) for names in (("prod", "eu-0"), ("prod-eu", "0"))]
    assert len(set(made)) == 2, made
