"""A whole run in this process: the real steps one after the other, without Ray."""

from birder_ray.backbone import resolve
from birder_ray.chunk import InputSpec
from birder_ray.collect import Collector
from birder_ray.commit import Ledger
from birder_ray.config import RunConfig
from birder_ray.destination import Destination
from birder_ray.folder import Folder
from birder_ray.infer import Infer
from birder_ray.manifest import ModelFacts, Recipe
from birder_ray.plan import make_plan
from birder_ray.preprocess import Preprocess
from birder_ray.read import read_chunks
from birder_ray.record import Record
from birder_ray.source import list_shards
from birder_ray.totals import Totals
from tests.built import InHand


def score(config: RunConfig) -> None:
    """As `pipeline.run`, but for the lock."""
    weights, shards = resolve(config.model), list_shards(config.source)
    size = config.model.size or weights.size
    facts = ModelFacts(weights.name, weights.network, weights.sha256, size)
    recipe, ledger = Recipe.of(config, facts), Ledger(Folder(config.destination, config.destination_options))
    place = Destination(config, ledger, recipe, facts, weights.class_names, shards)
    plan = make_plan(shards, recipe.key, place.unit_rows, ledger)
    preprocess = Preprocess(InputSpec(size, decoder=config.model.decoder))
    infer = Infer(config.model, config.outputs, config.compute)
    totals, units = Totals(), set(plan.done)
    for done in ledger.records(sorted(units)):
        totals.add(done)

    def committed(record: Record) -> None:
        place.committed()
        totals.add(record)
        units.add(record.unit)

    place.begin(plan)
    collector = Collector(ledger, recipe, place.unit_rows, InHand(), ledger.leftovers(), committed)
    try:
        for work in plan.work:
            for chunk in read_chunks(work, config.source, 4):
                collector.add(InHand.chunk(infer(preprocess(chunk))))
        collector.drain()
    finally:
        collector.close()
    place.finish(plan, totals, units)
