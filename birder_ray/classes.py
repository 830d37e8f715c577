"""The classes table: names by index, with the taxonomy where the names carry it."""

import re
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from birder_ray.schema import CLASSES_KEY_FIELDS

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")

_INAT21 = re.compile(r"(?:\d+_)?" + "_".join(["([A-Z][A-Za-z-]+)"] * 6) + r"_([a-z][a-z-]+(?: [a-z-]+)*)$")


def classes_table(names: Sequence[str]) -> pa.Table:
    """`class_index`, `class_name` and, if every name is of iNaturalist 2021's form, one column per taxonomic rank.

    Example:
        >>> names = ["00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"]
        >>> classes_table(names)["species"].to_pylist()
        ['Lumbricus terrestris']
    """
    columns = [pa.array(range(len(names)), pa.int32()), pa.array(names, pa.string())]
    fields = list(CLASSES_KEY_FIELDS)
    matches = [match.groups() for match in map(_INAT21.match, names) if match]
    if names and len(matches) == len(names):
        lineages = [(*ranks[:-1], f"{ranks[-2]} {ranks[-1]}") for ranks in matches]
        columns += [pa.array(column, pa.string()) for column in zip(*lineages, strict=True)]
        fields += [pa.field(rank, pa.string()) for rank in RANKS]
    return pa.table(columns, schema=pa.schema(fields))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The species of those classes whose names carry it, by name; without those that two classes share, as a plant and
    an animal may."""
    table = classes_table(names)
    if "species" not in table.column_names:
        return {}
    species = table["species"].to_pylist()
    often = Counter(species)
    return {name: short for name, short in zip(names, species, strict=True) if often[short] == 1}
