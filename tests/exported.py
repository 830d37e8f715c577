"""What the tests of `export` share: a small destination, and the files that go with it."""

from pathlib import Path

import pyarrow as pa

from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from tests.built import NAMES, build, rewrite

SHARDS = {"a.tar": 25, "b.tar": 12}
SCORED, BAD = 35, 2
METADATA = """
title: Herons & storks of the delta
description: |
  Photos of 40 camera traps.

  One paragraph more.
licence: CC-BY-4.0
creators:
- {given_name: Ada, surname: Byron, organization: Delta Trust, email: ada@example.org, orcid: 0000-0002-1825-0097}
"""
TAXA = """class_name,kingdom,class,family,genus,species
heron,Animalia,Aves,Ardeidae,Ardea,Ardea cinerea
stork,Animalia,Aves,Ciconiidae,Ciconia,ciconia
ibis,Animalia,Aves,,,
"""
SPECIES = {"heron": "Ardea cinerea", "stork": "Ciconia ciconia", "ibis": "Aves"}
HOSTILE = [
    '=cmd|" /C calc"!A0',
    "+1,2",
    "line\r\nbreak",
    "bare\rreturn",
    "tab\there",
    "Ardéa 鷺",
    "'quoted'",
    "-",
    "plain",
]


def made(folder: Path) -> Folder:
    """A destination in `folder`/scores, and taxa.csv, metadata.yaml and photos.csv beside it."""
    place = Folder(str(folder / "scores"))
    build(place, SHARDS)
    (folder / "taxa.csv").write_text(TAXA)
    (folder / "metadata.yaml").write_text(METADATA)
    dates = [f"a.tar/{index},2025-05-{index + 1:02d},{44 + index / 8},{-index}" for index in range(25)]
    (folder / "photos.csv").write_text("\n".join(["sample,date,latitude,longitude", *dates, "b.tar/0,2025-06-01,,"]))
    return place


def renamed(folder: Folder, names: list[str]) -> None:
    """Have samples that are called as `names`, from the first one on."""
    left = iter(names)
    for unit in sorted(Ledger(folder).units()):

        def rename(table: pa.Table) -> pa.Table:
            column = [next(left, name) for name in table["sample"].to_pylist()]
            return table.set_column(0, table.schema.field(0), pa.array(column, pa.string()))

        rewrite(folder, "predictions", unit, rename)


def expected() -> list[tuple[str, int]]:
    """Samples and the index of each, in the order of the parts."""
    return [(f"{shard}/{index}", index) for shard, size in SHARDS.items() for index in range(size) if index != 3]


def name_of(index: int) -> str:
    return NAMES[index % len(NAMES)]
