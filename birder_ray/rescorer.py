"""The network of a run, opened once more: it scores images as the run did, in this process, without Ray."""

from collections.abc import Mapping
from typing import Any

from birder_ray.chunk import Chunk, Sample
from birder_ray.config import RunConfig
from birder_ray.errors import ConfigError
from birder_ray.manifest import reopened


class Rescorer:
    """Scores images as a run did. Imports torch and birder.

    Args:
        manifest: of the run. source_options: fsspec options of the source, which no manifest holds.
        model: where the weights are now; None: where they were.

    Raises:
        ConfigError: the weights of the recipe are not here.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        source_options: Mapping[str, Any] | None = None,
        model: str | None = None,
    ):
        from birder_ray.backbone import resolve
        from birder_ray.infer import Infer
        from birder_ray.preprocess import Preprocess

        self.config = _config(manifest, source_options, model)
        sha256 = manifest["recipe"]["facts"]["weights_sha256"]
        needed = f"weights of sha256 {sha256[:12]}…"
        try:
            weights = resolve(self.config.model)
        except ConfigError as error:
            raise ConfigError(f"the {needed} are missing: {error}") from None
        if weights.sha256 != sha256:
            raise ConfigError(f"the {needed} are missing: {weights.path} is another file ({weights.sha256[:12]}…)")
        self._preprocess = Preprocess(weights.input_spec(self.config.model))
        self._infer = Infer(self.config.model, self.config.outputs, self.config.compute)
        self.tables = tuple(self._infer.schemas)

    def __call__(self, shard: str, samples: list[Sample], data: list[bytes]) -> Chunk:
        """The encoded images of a shard, scored: tables of those that could be, errors of the others."""
        chunk = Chunk("", shard, 0, last=True, end=True, samples=samples, errors=[], data=data)
        return self._infer(self._preprocess(chunk))


def _config(manifest: Mapping[str, Any], source_options: Mapping[str, Any] | None, model: str | None) -> RunConfig:
    """The config of the run, as far as its manifest tells."""
    fields = reopened(manifest, source_options)
    fields["compute"]["engine"] = "eager"
    if model is not None:
        fields["model"] |= {"name": model, "network": manifest["model"]["network"]}
    return RunConfig(**fields)
