"""A run by the calendar: scores what is new or changed in the source, and retires what has left it."""

from dataclasses import asdict, dataclass
from typing import Any

from birder_ray import history
from birder_ray import manifest as manifests
from birder_ray.commit import Ledger
from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError, LockHeld, RunFailed
from birder_ray.folder import Folder
from birder_ray.lock import Lock
from birder_ray.pipeline import recipe_of, run
from birder_ray.progress import Observer, RunSummary
from birder_ray.runs import DONE, RunRecord
from birder_ray.stop import Stop
from birder_ray.storage import redact


@dataclass(frozen=True)
class Rerun:
    """What a rerun did.

    Args:
        summary: of its scoring. snapshot: name of that of the state it left.
        changes: of the source since the snapshot before. forgotten: names of snapshots removed.
    """

    summary: RunSummary
    snapshot: str
    changes: history.Changes
    forgotten: list[str]

    def told(self) -> dict[str, Any]:
        """As JSON values, for a scheduler."""
        return {
            "outcome": DONE,
            "snapshot": self.snapshot,
            "shards": asdict(self.changes),
            "forgotten": self.forgotten,
            **asdict(self.summary),
        }


def rerun(
    config: RunConfig, observer: Observer | None = None, stop: Stop | None = None, keep: int | None = None
) -> Rerun:
    """Bring the destination up to date with its source, and leave a record of that in `_runs/`.

    With the same recipe and the same shards nothing is computed. With another recipe the results go to a sibling of the
    destination, named by the recipe, unless `run.overwrite` says otherwise.

    Args:
        keep: snapshots that are kept; None: all.

    Raises:
        What `pipeline.run` does; the record then says so.
    """
    observer = observer or Observer()
    Folder(config.destination, config.destination_options).check()
    config = _placed(config, observer)
    folder = Folder(config.destination, config.destination_options)
    before = history.latest(folder)
    if before is None:
        history.take(folder)  # of what plain runs left
        before = history.latest(folder)
    record = RunRecord(folder)
    try:
        summary = run(config, observer, stop, record)
    except (Exception, KeyboardInterrupt) as error:
        if record.begun or not isinstance(error, ConfigError):  # a mistake may be in the very name of the destination
            record.failed(error)
        raise
    after = history.latest(folder)
    if after is None:
        raise RunFailed(f"{redact(config.destination)} has units that lack a table: run once more, without a limit")
    done = Rerun(summary, after.name, history.changes(before, after), _forget(folder, keep))
    record.done(done.told())
    return done


def _forget(folder: Folder, keep: int | None) -> list[str]:
    if keep is None:
        return []
    try:
        with Lock(folder) as lock:
            return history.forget(Ledger(folder, lock.fence), keep)
    except LockHeld:
        return []  # another run has begun; the next rerun forgets


def _placed(config: RunConfig, observer: Observer) -> RunConfig:
    """`config` with the destination that is for its recipe, following its source."""
    follow: dict[str, Any] = {"run": config.run.model_copy(update={"incremental": True})}
    stored = manifests.load(Folder(config.destination, config.destination_options))
    if stored is not None and not config.run.overwrite:
        recipe = recipe_of(config)
        if recipe.within(stored["recipe"]) is None:
            sibling = f"{config.destination.rstrip('/')}-{recipe.key[:8]}"
            observer.notice(
                f"{redact(config.destination)} holds another recipe's results; these go to {redact(sibling)}"
            )
            follow["destination"] = sibling
    return config.model_copy(update=follow)
