"""`compare`: what changed between two destinations, sample by sample, and whether that is more than is allowed."""

from birder_ray.compare.comparison import Comparison
from birder_ray.compare.gate import Limits, lines, violations
from birder_ray.compare.html import write_html
from birder_ray.compare.make import compare

__all__ = ["Comparison", "Limits", "compare", "lines", "violations", "write_html"]
