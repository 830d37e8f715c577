"""One run, in order: lock, list, identify, plan, read → preprocess → infer → commit, finish."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass

from birder_ray import history, runtime
from birder_ray.arrivals import Far, Near
from birder_ray.chunk import InputSpec
from birder_ray.collect import Collector, Writer
from birder_ray.commit import SUCCESS, Ledger
from birder_ray.config import RunConfig
from birder_ray.destination import Destination
from birder_ray.errors import BirderRayError, RunFailed, Stopped
from birder_ray.folder import Folder
from birder_ray.guard import ATTEMPTS
from birder_ray.lock import Lock
from birder_ray.manifest import ModelFacts, Recipe
from birder_ray.metrics import Metrics, exported
from birder_ray.plan import Plan, make_plan, split_name, unit_name
from birder_ray.progress import Meter, Observer, RunSummary
from birder_ray.record import Record
from birder_ray.retries import is_transient
from birder_ray.runs import RunRecord
from birder_ray.scored import Scored
from birder_ray.session import job, session
from birder_ray.sizes import choose_sizes
from birder_ray.source import count_samples, list_shards
from birder_ray.stop import Stop
from birder_ray.storage import redact
from birder_ray.totals import Summing, Totals

_JUDGED_AFTER = 200
"""Samples after which the error rate is judged while a run goes on."""


def run(
    config: RunConfig, observer: Observer | None = None, stop: Stop | None = None, record: RunRecord | None = None
) -> RunSummary:
    """Score everything in the source that the destination does not hold yet.

    Running it again is the resume; where nothing is left to do, it returns within seconds.

    Args:
        config: what to do. observer: told of the progress. stop: asks the run to end early, with its units whole.
        record: of this run, which then is its caller's to end; None: it leaves one if there is something to do.

    Raises:
        ConfigError: the source, the model or the destination cannot be used as asked.
        LockHeld: another run writes to the destination.
        RunFailed: the run could not go on; what is committed stands.
        Stopped: `stop` asked for it; what is committed stands.
    """
    folder = Folder(config.destination, config.destination_options)
    if record is None:
        record = RunRecord(folder)
        try:
            summary = run(config, observer, stop, record)
        except (Exception, KeyboardInterrupt) as error:
            if record.begun:
                record.failed(error)
            raise
        if record.begun:
            record.done(asdict(summary))
        return summary
    try:
        return _run(config, folder, record, observer or Observer(), stop or Stop())
    except (BirderRayError, AssertionError):
        raise
    except Exception as error:  # every filesystem has exceptions of its own
        if not isinstance(error, OSError) and not is_transient(error):
            raise
        text = f"{redact(folder.url)}: {error}; mend that and run again to resume"
        raise RunFailed(text) from error


def _run(config: RunConfig, folder: Folder, record: RunRecord, observer: Observer, stop: Stop) -> RunSummary:
    started = time.perf_counter()
    observer.start(record.name)
    folder.check()
    with ExitStack() as stack:
        lock = stack.enter_context(Lock(folder))
        ledger = Ledger(folder, lock.fence, record.name)
        if lock.taken_from:
            observer.notice(f"took over from a run that is gone: {lock.taken_from}")
        shards = list_shards(config.source)
        with ThreadPoolExecutor(1) as pool:
            identifying = pool.submit(_identify, config)
            ray = None
            if not folder.exists(SUCCESS):  # there is work to do, so Ray starts meanwhile
                ray = stack.enter_context(session(config.compute.ray_address))
            model = identifying.result()
        if config.run.incremental:
            history.take(folder)  # of what may be retired
        recipe = Recipe.of(config, model.facts)
        place = Destination(config, ledger, recipe, model.facts, model.class_names, shards)
        if place.unit_rows != config.compute.unit_rows:
            observer.notice(f"units stay at {place.unit_rows} samples, as this destination began with")
        plan = make_plan(
            shards,
            place.recipe.key,
            place.unit_rows,
            ledger,
            config.source.limit,
            lambda shard, at_most: count_samples(shard, config.source, at_most),
            config.run.retry_errors,
            place.adding,
        )
        if plan.grow:
            observer.notice(f"adds {' and '.join(place.adding)} to {len(plan.grow):,} units that are there")
        place.check(plan)
        earlier = stack.enter_context(Summing(ledger, plan.done, place.known_totals(plan.done)))
        scoring = _Scoring(config, place, plan, earlier, lock, observer, stop)
        if plan.work:
            ray = ray or stack.enter_context(session(config.compute.ray_address))
            compute = config.compute
            sizes = choose_sizes(ray.grown(compute.max_cpus, compute.max_gpus), compute, len(plan.work), plan.images)
            units = {"units_done": len(plan.done), "units_todo": plan.units_todo, "units_growing": len(plan.grow)}
            what = {"recipe": place.recipe.key, "plan": {**units, "samples": plan.samples}}
            record.begin(what | {"ray_job": job(), "hardware": asdict(ray), "sizes": asdict(sizes)})
            arrivals = Far(max(ray.cpus, compute.max_cpus)) if ray.shared and folder.everywhere else Near()
            tag = place.recipe.key if ray.shared else None
            told = (config, model.spec, model.facts.weights_sha256, sizes, arrivals, lambda: stop.asked, tag)
            with closing(runtime.stream(plan.work, *told)) as chunks, exported(tag, record.name) as metrics:
                scoring.run(chunks, arrivals, sizes.workers, metrics)
        lock.check()
        totals = earlier.result() + scoring.totals
        scoring.judge(at_least=1)
        place.finish(plan, totals, scoring.units)
        ledger.discard(ATTEMPTS)
        if config.run.incremental:
            history.take(folder)
        return scoring.summary(totals, time.perf_counter() - started)


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe that a run of `config` would have. Raises ConfigError where the model cannot be found."""
    return Recipe.of(config, _identify(config).facts)


@dataclass(frozen=True)
class _Model:
    facts: ModelFacts
    spec: InputSpec
    class_names: Sequence[str]


def _identify(config: RunConfig) -> _Model:
    """What the driver needs to know of the model, without building it."""
    from birder_ray.backbone import resolve  # may import birder for seconds, or download, while Ray starts

    weights = resolve(config.model)
    spec = weights.input_spec(config.model)
    return _Model(ModelFacts(weights.name, weights.network, weights.sha256, spec.size), spec, weights.class_names)


class _Scoring:
    """The part of a run from scored chunks to commits, with its counts; `earlier` are those of the runs before."""

    def __init__(
        self,
        config: RunConfig,
        place: Destination,
        plan: Plan,
        earlier: Summing,
        lock: Lock,
        observer: Observer,
        stop: Stop,
    ):
        self.config = config
        self.place = place
        self.plan = plan
        self.earlier = earlier
        self.lock = lock
        self.observer = observer
        self.stop = stop
        self.units = set(plan.done)
        self.ended: set[str] = set()
        self.totals = Totals()
        self.metrics: Metrics | None = None
        self.meter = Meter(plan.samples, before=earlier.so_far.samples)

    def run(self, chunks: Iterator[Scored], writer: Writer, workers: dict[str, int], metrics: Metrics | None) -> None:
        """Commit every unit of the plan, or raise; what is complete when the run is stopped is committed all the same.

        Args:
            writer: of the rows of `chunks`. workers: most workers at once, by step. metrics: of a cluster, if any.
        """
        self.meter.workers, self.metrics = workers, metrics
        self.place.begin(self.plan)
        ledger = self.place.ledger
        told = (self.place.recipe, self.place.unit_rows, writer, ledger.leftovers())
        collector = Collector(ledger, *told, self._committed, self.plan.grow)
        self.observer.begin(self.meter)
        self.stop.in_flight = True
        try:
            for chunk in chunks:
                if self.lock.lost:
                    self.lock.check()
                self.meter.before = self.earlier.so_far.samples
                self.meter.scored(chunk)
                if metrics:
                    metrics.scored(chunk)
                collector.add(chunk)
                self.judge(at_least=_JUDGED_AFTER)
                self.observer.update()
            collector.drain()
        except KeyboardInterrupt:
            collector.drain()
            raise
        finally:
            collector.close()
            self.stop.in_flight = False
            self.observer.end()
        try:
            self._check_complete()
        except RunFailed:
            if not self.stop.asked:
                raise
            done = self.meter.units
            raise Stopped(f"stopped, {done:,} units committed; run the same command again to go on") from None

    def _committed(self, record: Record) -> None:
        self.place.committed()
        self.meter.committed(record)
        if self.metrics:
            self.metrics.committed(record, self.meter)
        self.totals.add(record)
        self.units.add(record.unit)
        if record.end:
            self.ended.add(split_name(record.unit)[0])

    def _check_complete(self) -> None:
        """Raise RunFailed where a shard gave less than its plan."""
        for work in self.plan.work:
            if work.units is None and work.prefix in self.ended:
                continue
            todo = [] if work.stop is None else [n for n in range(work.first, work.stop) if work.todo(n)]
            if work.stop is None or any(unit_name(work.prefix, n) not in self.units for n in todo):
                raise RunFailed(
                    f"{redact(work.shard.uri)} gave fewer samples than when it was listed: it changed meanwhile; "
                    f"run again to score it as it is now"
                )

    def judge(self, at_least: int) -> None:
        """Raise RunFailed where too much of what was read is quarantined.

        Args:
            at_least: samples before which nothing is said; nor is anything before the earlier runs' are known.
        """
        earlier = self.earlier.so_far
        samples = earlier.samples + self.meter.images + self.meter.errors
        errors = earlier.errors + self.meter.errors
        if not self.earlier.complete or samples < at_least or errors <= self.config.run.max_error_rate * samples:
            return
        kinds = ", ".join(f"{name} {count}" for name, count in self.meter.error_types.most_common(3))
        where = redact(self.config.destination)
        raise RunFailed(
            f"{errors} of {samples} samples are quarantined ({kinds or 'see errors/'}), more than --max-error-rate "
            f"{self.config.run.max_error_rate:g} allows; look at {where}/errors, then raise the rate, or mend the "
            f"source and run again with --retry-errors"
        )

    def summary(self, totals: Totals, seconds: float) -> RunSummary:
        """What this run did in so many seconds, and what the destination holds now."""
        return RunSummary(
            run=self.place.ledger.run,
            destination=redact(self.config.destination),
            recipe=self.place.recipe.key,
            images=self.meter.committed_images,
            errors=self.meter.committed_errors,
            units=self.meter.units,
            total_images=totals.rows,
            total_errors=totals.errors,
            total_units=totals.units,
            seconds=seconds,
            images_per_s=self.meter.images_per_s,
            busy_s={step: round(seconds, 3) for step, seconds in self.meter.busy.items()},
            utilisation=self.meter.utilisation,
            error_types=dict(self.meter.error_types),
            engines=dict(self.meter.engines),
            added=tuple(self.place.adding) if self.plan.grow else (),
        )
