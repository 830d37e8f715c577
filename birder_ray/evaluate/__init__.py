"""`evaluate`: how right a destination's predictions are, against labels of the run or of a file."""

from birder_ray.evaluate.accuracy import Scalar
from birder_ray.evaluate.make import Evaluation, evaluate, lines

__all__ = ["Evaluation", "Scalar", "evaluate", "lines"]
