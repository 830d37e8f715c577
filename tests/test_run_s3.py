"""From S3 to S3: the whole chain against a server on loopback, resumed, refused and verified as on a disk."""

import pytest

from birder_ray import ConfigError, LockHeld, RunConfig, run
from birder_ray.folder import Folder
from birder_ray.lock import Lock
from birder_ray.record import COMMITS
from birder_ray.testing import make_shards
from birder_ray.verify import status, verify
from tests.results import table

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.usefixtures("ray_session")]


def _config(s3, model: str, **blocks) -> RunConfig:
    return RunConfig(
        source={"uri": f"{s3.url}/data/shard-{{000000..000001}}.tar", "options": s3.options},
        model=model,
        destination=f"{s3.url}/out",
        destination_options=s3.options,
        compute={"unit_rows": 5, "gpus_per_actor": 0},
        **blocks,
    )


@pytest.mark.parametrize("server", ["s3_moto", "seaweed"])
def test_s3_to_s3(request, server, model):
    s3 = request.getfixturevalue(server)
    truth = make_shards(f"{s3.url}/data", images_per_shard=8, shards=2, options=s3.options)
    folder = Folder(f"{s3.url}/out", s3.options)
    with Lock(folder), pytest.raises(LockHeld, match="another run"):
        run(_config(s3, model))
    assert run(_config(s3, model)).units == 4
    lost = sorted(folder.names(COMMITS))[1]
    folder.delete(f"{COMMITS}/{lost}")
    assert run(_config(s3, model)).units == 1
    assert run(_config(s3, model)).units == 0
    samples = table(folder.url, "predictions", s3.options)["sample"].to_pylist()
    assert samples == [row.sample for row in truth]
    assert verify(folder.url, s3.options).samples == status(folder.url, s3.options).totals.samples == 16
    with pytest.raises(ConfigError, match="holds features and predictions besides"):
        run(_config(s3, model, outputs={"embeddings": {}}))
    told = folder.read("manifest.json").decode()
    assert s3.options["secret"] not in told
