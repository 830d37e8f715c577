"""infra/aws: Ray's own launcher takes the file, a made-up EC2 its instances; the policies open no more than needed."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "infra/aws/cluster.yaml"
POLICIES = sorted((ROOT / "infra/aws/iam").glob("*.json"))

pytestmark = pytest.mark.slow


@pytest.fixture
def account(tmp_path, monkeypatch):
    """A made-up AWS, and a home directory of its own: the launcher writes keys there."""
    moto = pytest.importorskip("moto")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64)
    with moto.mock_aws():
        yield tmp_path


def told() -> dict:
    return yaml.safe_load(FILE.read_text())


def prepared(config: dict) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = prepare_config(copy.deepcopy(config))
    validate_config(found)
    return found


def started(config: dict) -> dict[str, dict]:
    """One instance of each type, as the launcher would start it, by type."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    image = ec2.describe_images()["Images"][0]["ImageId"]
    for profile in ("birder-ray-head", "birder-ray-node"):
        iam.create_instance_profile(InstanceProfileName=profile)
    config = prepared(config)
    for node in config["available_node_types"].values():
        node["node_config"]["ImageId"] = image  # ours is for the reader to fill in
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    config = bootstrap_aws(config)
    found = {}
    for name, node in config["available_node_types"].items():
        options = {key: value for key, value in node["node_config"].items() if key != "SubnetIds"}
        (made,) = ec2.run_instances(MinCount=1, MaxCount=1, SubnetId=node["node_config"]["SubnetIds"][0], **options)[
            "Instances"
        ]
        found[name] = {"instance": made, "resources": node["resources"]}
    return found


def test_the_launcher_starts_every_type(account):
    found = started(told())
    assert found["head"]["resources"]["CPU"] == 0
    assert found["cpu"]["resources"]["CPU"] == 16 and "GPU" not in found["cpu"]["resources"]
    assert found["gpu"]["resources"]["CPU"] == 16 and found["gpu"]["resources"]["GPU"] == 1
    lives = {name: each["instance"].get("InstanceLifecycle") for name, each in found.items()}
    assert lives == {"head": None, "cpu": "spot", "gpu": "spot"}


@pytest.mark.parametrize(
    "fault",
    [
        lambda config: config.update(idle_timeout_minuts=5),
        lambda config: config["available_node_types"]["gpu"].update(max_worker=3),
        lambda config: config.update(head_node_type="heat"),
        lambda config: config["available_node_types"]["gpu"]["node_config"].update(InstanceMarketOption={}),
        lambda config: config["available_node_types"]["gpu"]["node_config"].update(InstanceType="g6.16k"),
    ],
)
def test_a_planted_fault_is_found(account, fault):
    config = told()
    fault(config)
    with pytest.raises(Exception):  # noqa: B017 - of jsonschema, Ray or botocore, as the fault may be
        started(config)


def test_what_no_validation_sees():
    config, nodes = told(), told()["available_node_types"]
    assert config["provider"]["cache_stopped_nodes"] is False and config["provider"]["use_internal_ips"] is True
    for name, node in nodes.items():
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (name != "head")
        assert node.get("min_workers", 0) == 0
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        profile = "birder-ray-head" if name == "head" else "birder-ray-node"
        assert node["node_config"]["IamInstanceProfile"] == {"Name": profile}
    assert sum(node.get("max_workers", 0) for node in nodes.values()) == config["max_workers"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert any("--dashboard-host=127.0.0.1" in line for line in starts)


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_policies_open_no_more_than_needed(account, path):
    import boto3

    document = json.loads(path.read_text())
    boto3.client("iam").create_policy(PolicyName=path.stem, PolicyDocument=json.dumps(document))
    for statement in document["Statement"]:
        assert not [action for action in statement["Action"] if "*" in action]
        if any(action.startswith(("s3:", "iam:")) for action in statement["Action"]):
            resources = statement["Resource"]
            for resource in resources if isinstance(resources, list) else [resources]:
                assert re.match(r"arn:aws:(s3:::[\w-]+|iam::\d+:role/[\w-]+)", resource), resource
        ends = {"ec2:TerminateInstances", "ec2:StopInstances"} & set(statement["Action"])
        assert not ends or "Condition" in statement
