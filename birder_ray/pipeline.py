"""One run, in order: lock, list, identify, plan, read → preprocess → infer → commit, finish."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from birder_ray import runtime
from birder_ray.chunk import Chunk
from birder_ray.collect import Collector
from birder_ray.commit import SUCCESS, Ledger, Record
from birder_ray.config import RunConfig
from birder_ray.destination import Destination, Totals
from birder_ray.errors import RunFailed
from birder_ray.lock import Lock
from birder_ray.manifest import ModelFacts, Recipe
from birder_ray.plan import Plan, make_plan, unit_name
from birder_ray.progress import Meter, Observer, RunSummary
from birder_ray.schema import ERRORS
from birder_ray.sizes import choose_sizes
from birder_ray.source import count_samples, list_shards
from birder_ray.storage import Folder, redact

if TYPE_CHECKING:  # torch takes seconds to import, and is imported while Ray starts
    from birder_ray.preprocess import InputSpec

_JUDGED_AFTER = 200
"""Samples after which the error rate is judged while a run goes on."""


def run(config: RunConfig, observer: Observer | None = None) -> RunSummary:
    """Score everything in the source that the destination does not hold yet.

    Running it again is the resume; where nothing is left to do, it returns within seconds.

    Args:
        config: what to do. observer: told of the progress.

    Raises:
        ConfigError: the source, the model or the destination cannot be used as asked.
        LockHeld: another run writes to the destination.
        RunFailed: the run could not go on; what is committed stands.
    """
    observer = observer or Observer()
    started = time.perf_counter()
    folder = Folder(config.destination, config.destination_options)
    ledger = Ledger(folder)
    with ExitStack() as stack:
        lock = stack.enter_context(Lock(folder))
        if lock.taken_from:
            observer.notice(f"took over from a run that is gone: {lock.taken_from}")
        shards = list_shards(config.source)
        with ThreadPoolExecutor(1) as pool:
            identifying = pool.submit(_identify, config)
            resources = None
            if not folder.exists(SUCCESS):  # there is work to do, so Ray starts while torch is imported
                resources = stack.enter_context(runtime.session(config.compute.ray_address))
            model = identifying.result()
        recipe = Recipe.of(config, model.facts)
        place = Destination(config, ledger, recipe, model.facts, model.class_names, shards)
        if place.unit_rows != config.compute.unit_rows:
            observer.notice(f"units stay at {place.unit_rows} samples, as this destination began with")
        plan = make_plan(
            shards,
            recipe.key,
            place.unit_rows,
            ledger,
            config.source.limit,
            lambda shard, at_most: count_samples(shard, config.source, at_most),
            config.run.retry_errors,
        )
        place.check(plan)
        totals = Totals()
        for record in ledger.records(sorted(plan.done)):
            totals.add(record)
        meter = Meter(plan.samples, before=totals.samples)
        if plan.work:
            if resources is None:
                resources = stack.enter_context(runtime.session(config.compute.ray_address))
            sizes = choose_sizes(resources["CPU"], resources.get("GPU", 0.0), config.compute, len(plan.work))
            meter.workers = sizes.workers
            chunks = runtime.stream(plan.work, config, model.spec, model.facts.weights_sha256, sizes)
            with _observed(observer, meter):
                _commit_all(chunks, config, place, plan, recipe, lock, meter, totals, observer)
        _judge(config, totals.samples, totals.errors, meter)
        place.finish(plan, totals)
        return _summary(config, recipe, meter, totals, time.perf_counter() - started)


@dataclass(frozen=True)
class _Model:
    facts: ModelFacts
    spec: "InputSpec"
    class_names: Sequence[str]


def _identify(config: RunConfig) -> _Model:
    """What the driver needs to know of the model, without building it."""
    from birder_ray.backbone import resolve
    from birder_ray.preprocess import InputSpec

    weights = resolve(config.model)
    size = config.model.size or weights.size
    spec = InputSpec(
        size, config.model.center_crop, config.model.simple_crop, config.model.decoder, channels=weights.channels
    )
    return _Model(ModelFacts(weights.name, weights.network, weights.sha256, size), spec, weights.class_names)


def _commit_all(
    chunks: Iterator[Chunk],
    config: RunConfig,
    place: Destination,
    plan: Plan,
    recipe: Recipe,
    lock: Lock,
    meter: Meter,
    totals: Totals,
    observer: Observer,
) -> None:
    """Commit every unit of the plan, or raise; what is complete when the run is stopped is committed all the same."""
    missing = _Missing(plan)

    def on_commit(record: Record) -> None:
        place.committed()
        meter.committed(record)
        totals.add(record)
        missing.found(record)

    place.begin()
    failed = place.ledger.parts(ERRORS)
    collector = Collector(place.ledger, recipe, place.unit_rows, plan.redo, failed, on_commit)
    try:
        for chunk in chunks:
            if lock.lost:
                raise RunFailed(f"another run has taken over {redact(config.destination)}; this one stops")
            meter.scored(chunk)
            collector.add(chunk)
            _judge(config, meter.images + meter.errors, meter.errors, meter, at_least=_JUDGED_AFTER)
            observer.update()
        collector.drain()
    except KeyboardInterrupt:
        collector.drain()
        raise
    finally:
        collector.close()
    missing.check()


class _Missing:
    """Units of the plan that have no commit yet."""

    def __init__(self, plan: Plan):
        self.work = plan.work
        self.seen: set[str] = set()
        self.ended: set[str] = set()

    def found(self, record: Record) -> None:
        self.seen.add(record.unit)
        if record.end:
            self.ended.add(record.unit.rpartition("-")[0])

    def check(self) -> None:
        """Raises RunFailed where a shard gave less than its plan."""
        for work in self.work:
            if work.units is None and work.prefix in self.ended:
                continue
            todo = [] if work.stop is None else [n for n in range(work.first, work.stop) if work.todo(n)]
            if work.stop is None or any(unit_name(work.prefix, n) not in self.seen for n in todo):
                raise RunFailed(
                    f"{redact(work.shard.uri)} gave fewer samples than when it was listed: it changed meanwhile; "
                    f"run again to score it as it is now"
                )


def _judge(config: RunConfig, samples: int, errors: int, meter: Meter, at_least: int = 1) -> None:
    """Raise RunFailed where too much of what was read is quarantined."""
    if samples < at_least or errors <= config.run.max_error_rate * samples:
        return
    kinds = ", ".join(f"{name} {count}" for name, count in meter.error_types.most_common(3))
    raise RunFailed(
        f"{errors} of {samples} samples are quarantined ({kinds or 'see errors/'}), more than --max-error-rate "
        f"{config.run.max_error_rate:g} allows; look at {redact(config.destination)}/errors, then raise the "
        f"rate, or mend the source and run again with --retry-errors"
    )


@contextmanager
def _observed(observer: Observer, meter: Meter) -> Iterator[None]:
    observer.begin(meter)
    try:
        yield
    finally:
        observer.end()


def _summary(config: RunConfig, recipe: Recipe, meter: Meter, totals: Totals, seconds: float) -> RunSummary:
    return RunSummary(
        destination=redact(config.destination),
        recipe=recipe.key,
        images=meter.committed_images,
        errors=meter.committed_errors,
        units=meter.units,
        total_images=totals.rows,
        total_errors=totals.errors,
        total_units=totals.units,
        seconds=seconds,
        images_per_s=meter.images_per_s,
        utilisation=meter.utilisation,
        error_types=dict(meter.error_types),
    )
