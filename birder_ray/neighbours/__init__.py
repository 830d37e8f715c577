"""Which images are alike: the nearest to one (`similar`), those that a destination holds twice (`duplicates`), and
those that two destinations share (`leakage`). From stored embeddings, and from hashes of the images read once more."""

from birder_ray.neighbours.duplicates import Duplicates, duplicates
from birder_ray.neighbours.leakage import Leakage, leakage, violations
from birder_ray.neighbours.similar import Similar, similar

__all__ = ["Duplicates", "Leakage", "Similar", "duplicates", "leakage", "similar", "violations"]
