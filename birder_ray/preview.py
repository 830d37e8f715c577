"""`plan`: what a run would do, without doing it; needs neither Ray nor torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from birder_ray import manifest as manifests
from birder_ray.commit import Ledger
from birder_ray.config import RunConfig
from birder_ray.folder import Folder
from birder_ray.plan import Work, make_plan
from birder_ray.sizes import Hardware, Sizes, choose_sizes
from birder_ray.source import count_samples, list_shards


@dataclass(frozen=True)
class Preview:
    """What `plan` found.

    Args:
        samples, units_todo: None where shards must be read to tell. bytes: size of the source, None likewise.
        differs: what differs from the results in the destination, which a run would refuse; empty where nothing does.
        adds, units_growing: tables that a run would add to units that are there, and to how many.
        sizes: the actors that this machine would start; GPUs count if `gpus_per_actor` or `decode_on` say so.
        work: what is left to do.
    """

    shards: int
    bytes: int | None
    samples: int | None
    units_done: int
    units_todo: int | None
    units_foreign: int
    differs: str
    adds: Sequence[str]
    units_growing: int
    sizes: Sizes
    work: Sequence[Work]


def preview(config: RunConfig) -> Preview:
    """List the source, read the commits, compare.

    Raises:
        ConfigError: as `run` does for the source and the destination.
    """
    shards = list_shards(config.source)
    folder = Folder(config.destination, config.destination_options)
    folder.check()
    stored, ledger = manifests.load(folder), Ledger(folder)
    differs, adds = _compared(config, stored) if stored else ("", [])
    plan = make_plan(
        shards,
        stored["recipe"]["key"] if stored else "",
        stored["unit_rows"] if stored else config.compute.unit_rows,
        ledger,
        config.source.limit,
        lambda shard, at_most: count_samples(shard, config.source, at_most),
        config.run.retry_errors,
        adds,
    )
    sizes = [shard.size for shard in shards]
    return Preview(
        shards=len(shards),
        bytes=sum(size for size in sizes if size is not None) if None not in sizes else None,
        samples=plan.samples,
        units_done=len(plan.done),
        units_todo=plan.units_todo,
        units_foreign=len(plan.foreign),
        differs=differs,
        adds=adds,
        units_growing=len(plan.grow),
        sizes=choose_sizes(this_machine(_gpus_told(config)), config.compute, max(1, len(plan.work)), plan.images),
        work=plan.work,
    )


def _compared(config: RunConfig, stored: dict[str, Any]) -> tuple[str, list[str]]:
    """What differs from a manifest, and the tables that its units may lack. By the options; the weights are compared
    when a run has found them."""
    facts, there = manifests.option_facts(config), stored["recipe"]["facts"]
    if config.model.size is not None:
        facts["size"] = list(config.model.size)
    ours = facts["tables"]
    if any(ours.get(name) != own for name, own in there["tables"].items()):
        return manifests.difference(facts, there), []
    differs = manifests.difference(facts | {"tables": there["tables"]}, there)
    adds = [name for name in ours if name not in there["tables"] or name in stored.get("adding", ())]
    return differs, [] if differs else adds


def _gpus_told(config: RunConfig) -> float:
    told = config.compute.gpus_per_actor
    if told == "auto":
        return 1.0 if config.compute.decode_on == "gpu" else 0.0
    return max(1.0, told) if told else 0.0


def this_machine(gpus: float) -> Hardware:
    """This machine, said to have so many GPUs: only torch could count them."""
    cpus = float(os.cpu_count() or 1)
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return Hardware(cpus, gpus, cpus, gpus, memory)
