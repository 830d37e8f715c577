"""A destination's life: whose recipe it holds, when a new one takes over, and what stands in it when a run is over."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from birder_ray import manifest as manifests
from birder_ray.classes import classes_table
from birder_ray.commit import CLASSES, SUCCESS, Ledger
from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError
from birder_ray.folder import to_json
from birder_ray.manifest import MANIFEST, ModelFacts, Recipe, now
from birder_ray.parts import encode, part_name
from birder_ray.plan import Plan
from birder_ray.record import COMMITS, record_name
from birder_ray.schema import ERRORS, OUTPUT_TABLES, part_metadata
from birder_ray.source.base import Shard
from birder_ray.storage import redact
from birder_ray.totals import Totals

_AT_ONCE = 16
"""Units that are cleared away side by side."""


class Destination:
    """The destination as one run sees it.

    Args:
        config, recipe, model, class_names, shards: what this run is about.

    Attributes:
        recipe: of this run, under the key that the destination has. adding: tables that its units may lack.

    Raises:
        ConfigError: it holds results of another recipe, and `overwrite` is not set.
    """

    def __init__(
        self,
        config: RunConfig,
        ledger: Ledger,
        recipe: Recipe,
        model: ModelFacts,
        class_names: Sequence[str],
        shards: Sequence[Shard],
    ):
        self.ledger = ledger
        self.folder = ledger.folder
        self.config = config
        stored = manifests.load(self.folder)
        within = recipe.within(stored["recipe"]) if stored else recipe
        self.replaces = within is None
        if stored is not None and self.replaces and recipe.key == stored["recipe"]["key"]:
            recipe = recipe.apart(stored["created"])  # it began as this one, and tables were added
        if stored is not None and self.replaces and not config.run.overwrite:
            what = manifests.difference(recipe.facts, stored["recipe"]["facts"])
            left_out = stored["recipe"]["tables"].keys() - recipe.tables.keys()
            if left_out and recipe.tables.items() <= stored["recipe"]["tables"].items():
                raise ConfigError(
                    f"{redact(self.folder.url)} holds {' and '.join(sorted(left_out))} besides: name all its tables in "
                    f"--outputs, or choose another --output"
                )
            raise ConfigError(
                f"{redact(self.folder.url)} holds results of another recipe ({what}); "
                f"choose another --output, or replace them with --overwrite"
            )
        self.recipe = within or recipe
        self.manifest = manifests.new_manifest(config, self.recipe, model, shards)
        self.adding: list[str] = []
        if stored is not None and not self.replaces:
            grown = self.recipe.tables.keys() - stored["recipe"]["tables"].keys() | set(stored.get("adding", ()))
            self.adding = sorted(grown)
            self.manifest |= {"unit_rows": stored["unit_rows"], "created": stored["created"], "adding": self.adding}
        self.unit_rows: int = self.manifest["unit_rows"]
        self.classes = encode(classes_table(class_names), part_metadata(recipe.core, ""))
        self.stored = stored
        self.adopted = False

    def known_totals(self, done: AbstractSet[str]) -> Totals | None:
        """Sums over the units in `done`, if they are just those that a finished run has summed up already."""
        if self.replaces or self.stored is None or not self.stored["totals"] or not self.folder.exists(SUCCESS):
            return None
        known = Totals(**self.stored["totals"])
        return known if known.units == len(done) else None

    def check(self, plan: Plan) -> None:
        """Refuse commits of inputs that the source does not hold any more.

        Raises:
            ConfigError: there are some, and neither `overwrite` nor `incremental` is set.
        """
        if self.replaces or self.config.run.overwrite or self.config.run.incremental:
            return
        ours = [r for r in self.ledger.records(sorted(plan.foreign)) if r.recipe == self.recipe.key]
        if ours:
            raise ConfigError(
                f"{redact(self.folder.url)} holds {len(ours)} units of inputs that changed or left the source since, "
                f"e.g. {ours[0].shard}; follow the source with birder-ray rerun or --incremental, choose another "
                f"--output, or start over with --overwrite"
            )

    def begin(self, plan: Plan) -> None:
        """Before the first unit is written. Another recipe's results stay as they are until this one has a commit."""
        if not self.replaces:
            self._adopt()
        for unit in sorted(plan.redo):
            # All at once: were a unit that is cut short left standing while later ones are committed, a crash would
            # leave a gap that no later run could see
            self.ledger.retract(unit)

    def committed(self) -> None:
        """After a commit."""
        if not self.adopted:
            self._adopt()

    def _adopt(self) -> None:
        self.ledger.discard(SUCCESS)
        self.ledger.overwrite(MANIFEST, to_json(self.manifest))
        self.ledger.overwrite(CLASSES, self.classes)
        self.adopted = True

    def finish(self, plan: Plan, totals: Totals, counted: set[str]) -> None:
        """Every unit of the plan is committed: clear away what is not this run's, and say that it is finished.

        Args:
            totals: sums over the units in `counted`; those of the other units, which an earlier run with a higher
                --limit left, are added to it.
        """
        if plan.foreign and not self.adopted:  # from here on it does not hold what the manifest says
            self._adopt()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(self._clear, sorted(plan.foreign)):
                pass
        # Parts are listed before units: one that is committed meanwhile, by whoever, is no stray then
        parts = {table: self.ledger.parts(table) for table in (*OUTPUT_TABLES, ERRORS)}
        units = self.ledger.units()
        left = False
        for record in self.ledger.records(sorted(units - counted)):
            totals.add(record)
            left = left or record.lacks(self.adding)
        for table, present in parts.items():
            for unit in present - units - counted:
                if not self.folder.exists(record_name(unit)):  # the listings of some stores lag behind
                    self.ledger.discard(part_name(table, unit))
        if not self.adopted and self._says(totals):
            return
        if not self.adopted:
            self._adopt()
        self.ledger.fence()
        for place in ("", COMMITS, *OUTPUT_TABLES, ERRORS):
            self.folder.sweep(place)
        told = {} if left else {"finished": now(), "totals": asdict(totals), "adding": []}
        self.ledger.overwrite(MANIFEST, to_json(self.manifest | told))
        if left:
            return  # some units, beyond a --limit, lack a table that others have
        success = {"recipe": self.recipe.key, "finished": now(), "samples": totals.samples}
        self.ledger.overwrite(SUCCESS, to_json(success))

    def _clear(self, unit: str) -> None:
        """Take away a unit of inputs, or of a recipe, that are no longer this destination's."""
        if self.config.run.incremental and self.ledger.read(unit).recipe == self.recipe.key:
            self.ledger.retire(unit)
        else:
            self.ledger.erase(unit)

    def _says(self, totals: Totals) -> bool:
        """Whether the destination says already that it is finished, and what it holds."""
        stored = manifests.load(self.folder)
        return (
            stored is not None
            and stored["recipe"]["key"] == self.recipe.key
            and stored["recipe"]["tables"] == self.recipe.tables
            and stored["totals"] is not None
            and stored["totals"]["samples"] == totals.samples
            and stored["config"]["source"]["limit"] == self.config.source.limit
            and self.folder.exists(SUCCESS)
        )
