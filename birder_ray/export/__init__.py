"""`export`: a destination in the formats that other programs read."""

from birder_ray.export.make import FORMATS, Exported, export, lines
from birder_ray.export.rows import Options

__all__ = ["FORMATS", "Exported", "Options", "export", "lines"]
