"""Sources: image directories and files, WebDataset tars, Parquet with image bytes, manifests of URIs."""

from birder_ray.source.base import Item, Shard, Wanted
from birder_ray.source.listing import list_shards
from birder_ray.source.reader import count_samples, read_samples

__all__ = ["Item", "Shard", "Wanted", "count_samples", "list_shards", "read_samples"]
