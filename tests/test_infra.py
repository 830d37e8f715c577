"""The files in infra/ are what Kubernetes and KubeRay take, and what a fleet needs; planted faults are found."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from birder_ray.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "infra/k8s"
SCHEMAS = ROOT.parent / "shared/kuberay-schemas"
BUILDS = ["base", "overlays/aws-spot", "overlays/gke-spot", "overlays/cpu-only", "raycronjob"]
LONGEST = {"RayJob": 47, "RayCluster": 53, "RayCronJob": 36, "CronJob": 52}
Doc = dict[str, Any]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")


def built(folder: str) -> list[Doc]:
    done = subprocess.run(["kubectl", "kustomize", K8S / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=BUILDS)
def docs(request) -> list[Doc]:
    return built(request.param)


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    jsonschema = pytest.importorskip("jsonschema")
    if not SCHEMAS.exists():
        pytest.skip("no ../shared/kuberay-schemas here")
    return {
        kind: jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind}.v1.json").read_text()))
        for kind in ("RayJob", "RayCluster", "RayCronJob")
    }


def violations(doc: Doc, schemas: dict[str, Any]) -> list[str]:
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in schemas[doc["kind"]].iter_errors(doc)]


def job_specs(docs: list[Doc]) -> Iterator[tuple[Doc, Doc]]:
    for doc in docs:
        if doc["kind"] == "RayJob":
            yield doc, doc["spec"]
        elif doc["kind"] == "RayCronJob":
            yield doc, doc["spec"]["jobTemplate"]


def pods(docs: list[Doc]) -> Iterator[tuple[str, Doc]]:
    for doc, spec in job_specs(docs):
        cluster = spec["rayClusterSpec"]
        yield f"{doc['kind']} head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{doc['kind']} {group['groupName']}", group["template"]["spec"]
    for doc in docs:
        if doc["kind"] == "CronJob":
            yield "CronJob", doc["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def gib(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([GM]i)", text).groups()
    return int(number) / (1 if unit == "Gi" else 1024)


def problems(docs: list[Doc]) -> list[str]:
    """What KubeRay's own code refuses, or a fleet would suffer from, and no schema says."""
    found: list[str] = []

    def want(good: bool, text: str) -> None:
        if not good:
            found.append(text)

    accounts = {doc["metadata"]["name"] for doc in docs if doc["kind"] == "ServiceAccount"}
    maps = {doc["metadata"]["name"]: doc["data"] for doc in docs if doc["kind"] == "ConfigMap"}
    pin = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    for doc in docs:
        longest = LONGEST.get(doc["kind"], 253)
        want(len(doc["metadata"]["name"]) <= longest, f"{doc['kind']}: its name is longer than {longest}")
    images = set()
    for where, pod in pods(docs):
        want(pod["restartPolicy"] == "Never", f"{where}: the autoscaler wants restartPolicy Never")
        want(pod["serviceAccountName"] in accounts, f"{where}: its service account is not there")
        want(pod.get("securityContext", {}).get("runAsNonRoot") is True, f"{where}: runs as root")
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            images.add(container["image"])
            resources = container["resources"]
            want("cpu" not in resources["limits"], f"{where}: a CPU limit throttles")
            if where != "CronJob":
                same = resources["limits"]["memory"] == resources["requests"]["memory"]
                want(same, f"{where}: memory that is not requested can be taken away")
            secrets = [
                each["name"]
                for each in container.get("env", [])
                if re.search("SECRET|PASSWORD|TOKEN|KEY", each["name"])
            ]
            want(not secrets, f"{where}: {secrets} in plain sight")
            mounts = {mount["mountPath"]: volumes.get(mount["name"]) for mount in container.get("volumeMounts", [])}
            want(None not in mounts.values(), f"{where}: mounts a volume that is not there")
            spill = (mounts.get("/tmp/ray") or {}).get("emptyDir", {}).get("sizeLimit")
            if where != "CronJob":
                want(spill is not None, f"{where}: spills without bounds")
                room = resources["requests"].get("ephemeral-storage", "0Gi")
                want(spill is None or gib(spill) <= gib(room), f"{where}: is evicted when it spills")
        for volume in volumes.values():
            if "configMap" in volume:
                want(volume["configMap"]["name"] in maps, f"{where}: no ConfigMap {volume['configMap']['name']}")
    want(len(images) == 1 and ":" in next(iter(images)), f"images differ, or have no tag: {images}")
    for doc, spec in job_specs(docs):
        where, cluster = doc["kind"], spec["rayClusterSpec"]
        want(cluster["rayVersion"] == pin, f"{where}: Ray {cluster['rayVersion']}, but {pin} is installed")
        want(spec.get("suspend", False) == (where == "RayJob"), f"{where}: only the template is suspended")
        want(spec["submissionMode"] == "K8sJobMode", f"{where}: not K8sJobMode")
        want(spec["shutdownAfterJobFinishes"] is True, f"{where}: the cluster stays, and costs")
        want(spec.get("ttlSecondsAfterFinished", 0) > 0, f"{where}: no time to read the end")
        want(spec.get("backoffLimit", 0) > 0, f"{where}: a lost head ends it")
        want("clusterSelector" not in spec, f"{where}: no retries with clusterSelector")
        want(spec.get("activeDeadlineSeconds", 0) >= 86_400, f"{where}: DeadlineExceeded is not retried")
        want("preRunningDeadlineSeconds" in spec, f"{where}: waits for ever for pods that never come")
        want("deletionStrategy" not in spec, f"{where}: excludes shutdownAfterJobFinishes")
        want(cluster.get("enableInTreeAutoscaling") is True, f"{where}: no autoscaling")
        autoscaler = cluster.get("autoscalerOptions", {})
        want(autoscaler.get("version") == "v2", f"{where}: autoscaler v2")
        want("resources" in autoscaler, f"{where}: the autoscaler falls behind with its default resources")
        want(cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") == "0", f"{where}: the head works")
        groups = cluster["workerGroupSpecs"]
        want(any(not _gpus(group) for group in groups), f"{where}: nowhere to decode")
        for group in groups:
            name, count = group["groupName"], group.get("maxReplicas", 0)
            want(0 <= group["minReplicas"] <= group["replicas"] <= count, f"{where} {name}: replicas out of bounds")
            want(group["minReplicas"] == 0 or not _gpus(group), f"{where} {name}: a GPU that is idle costs")
            tolerated = [each["key"] for each in group["template"]["spec"].get("tolerations", [])]
            want(not _gpus(group) or "nvidia.com/gpu" in tolerated, f"{where} {name}: GPU nodes are tainted")
        mounted = {
            f"{mount['mountPath']}/{key}"
            for mount in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
            for data in maps.values()
            for key in data
        }
        told = [yaml.safe_load(text)["compute"] for data in maps.values() for text in data.values()]
        for kind, key in (("cpu", "max_cpus"), ("nvidia.com/gpu", "max_gpus")):
            most = sum(group["maxReplicas"] * _requested(group, kind) for group in groups)
            want(
                told and told[0].get(key, 0) == most, f"{where}: its groups grow to {most} {kind}, the pipeline differs"
            )
        file = next((word for word in spec["entrypoint"].split() if word.endswith(".yaml")), "")
        want(file in mounted, f"{where}: the head has no {file}")
    for doc in docs:
        if doc["kind"] == "CronJob":
            want(doc["spec"].get("concurrencyPolicy") == "Forbid", "CronJob: two at once")
            want("timeZone" in doc["spec"] and "startingDeadlineSeconds" in doc["spec"], "CronJob: when, exactly?")
            called = set(re.findall(r'kubectl\(\["(\w+)"', (K8S / "submit.py").read_text()))
            allowed = {verb for role in docs if role["kind"] == "Role" for verb in role["rules"][0]["verbs"]}
            want(called == allowed == {"get", "create"}, f"submit.py calls {called}, its role allows {allowed}")
    return found


def _requested(group: Doc, kind: str) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["requests"].get(kind, 0))


def _gpus(group: Doc) -> bool:
    return "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_everything_is_as_it_should_be(docs, schemas):
    assert problems(docs) == []
    for doc in docs:
        if doc["kind"] in schemas:
            assert violations(doc, schemas) == []


def test_kubernetes_takes_the_other_kinds(docs):
    for doc in docs:
        if not doc["kind"].startswith("Ray"):
            kubernetes_validate.validate(doc, "1.34", strict=True)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("CronJob", lambda doc: doc["spec"].update(concurencyPolicy="Forbid")),
        ("CronJob", lambda doc: doc["spec"].update(startingDeadlineSeconds="600")),
        ("Role", lambda doc: doc["rules"][0].update(verb=["get"])),
        ("RoleBinding", lambda doc: doc.pop("roleRef")),
    ],
)
def test_what_kubernetes_would_refuse_is_found(base, kind, fault):
    doc = copy.deepcopy(of_kind(base, kind))
    fault(doc)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(doc, "1.34", strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/cpu-only"])
def test_the_pipeline_is_one(tmp_path, folder):
    (config,) = [doc for doc in built(folder) if doc["kind"] == "ConfigMap"]
    (tmp_path / "pipeline.yaml").write_text(config["data"]["pipeline.yaml"])
    found = RunConfig.from_yaml(str(tmp_path / "pipeline.yaml"))
    assert found.compute.ray_address == "auto" and found.model.weights_mirror


def spec_of(docs: list[Doc]) -> Doc:
    return next(job_specs(docs))[1]


def cluster_of(docs: list[Doc]) -> Doc:
    return spec_of(docs)["rayClusterSpec"]


def worker_of(docs: list[Doc]) -> Doc:
    return cluster_of(docs)["workerGroupSpecs"][1]["template"]["spec"]


def container_of(docs: list[Doc]) -> Doc:
    return worker_of(docs)["containers"][0]


def of_kind(docs: list[Doc], kind: str) -> Doc:
    return next(doc for doc in docs if doc["kind"] == kind)


FAULTS: dict[str, Callable[[list[Doc]], Any]] = {
    "typo in a field": lambda docs: spec_of(docs).update(entryPoint="x"),
    "a number for a text": lambda docs: cluster_of(docs)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    "a text for a number": lambda docs: cluster_of(docs)["workerGroupSpecs"][0].update(minReplicas="0"),
    "typo in a pod": lambda docs: worker_of(docs).update(nodeSelektor={}),
    "unknown autoscaler": lambda docs: cluster_of(docs)["autoscalerOptions"].update(version="v3"),
    "another Ray": lambda docs: cluster_of(docs).update(rayVersion="2.59.0"),
    "a template that runs": lambda docs: spec_of(docs).update(suspend=False),
    "no retries": lambda docs: spec_of(docs).update(backoffLimit=0),
    "no deadline for pods": lambda docs: spec_of(docs).pop("preRunningDeadlineSeconds"),
    "a short deadline": lambda docs: spec_of(docs).update(activeDeadlineSeconds=600),
    "a cluster that stays": lambda docs: spec_of(docs).update(shutdownAfterJobFinishes=False),
    "both ways of deletion": lambda docs: spec_of(docs).update(deletionStrategy={"deletionRules": []}),
    "a head that works": lambda docs: cluster_of(docs)["headGroupSpec"]["rayStartParams"].clear(),
    "an idle GPU": lambda docs: cluster_of(docs)["workerGroupSpecs"][1].update(minReplicas=1, replicas=1),
    "no toleration": lambda docs: worker_of(docs).pop("tolerations"),
    "restarts": lambda docs: worker_of(docs).update(restartPolicy="Always"),
    "root": lambda docs: worker_of(docs).pop("securityContext"),
    "a stranger": lambda docs: worker_of(docs).update(serviceAccountName="default"),
    "a CPU limit": lambda docs: container_of(docs)["resources"]["limits"].update(cpu="15"),
    "more memory than asked for": lambda docs: container_of(docs)["resources"]["limits"].update(memory="64Gi"),
    "keys": lambda docs: container_of(docs)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
    "another image": lambda docs: container_of(docs).update(image="birder-ray:latest"),
    "spills without bounds": lambda docs: worker_of(docs).update(volumes=[{"name": "spill", "emptyDir": {}}]),
    "spills too much": lambda docs: worker_of(docs)["volumes"][0]["emptyDir"].update(sizeLimit="500Gi"),
    "no pipeline": lambda docs: docs.remove(of_kind(docs, "ConfigMap")),
    "a fleet of another size": lambda docs: cluster_of(docs)["workerGroupSpecs"][1].update(maxReplicas=9),
    "another file": lambda docs: spec_of(docs).update(entrypoint="birder-ray rerun /etc/other.yaml"),
    "a name too long": lambda docs: of_kind(docs, "RayJob")["metadata"].update(name="b" * 48),
    "two at once": lambda docs: of_kind(docs, "CronJob")["spec"].update(concurrencyPolicy="Allow"),
    "no verb": lambda docs: of_kind(docs, "Role")["rules"][0].update(verbs=["get"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> list[Doc]:
    return built("base")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(base, schemas, fault):
    docs = copy.deepcopy(base)
    FAULTS[fault](docs)
    refused = [each for doc in docs if doc["kind"] in schemas for each in violations(doc, schemas)]
    assert refused or problems(docs)


def test_the_image_is_what_the_manifests_run():
    docker = (ROOT / "infra/docker/Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM base AS (\w+)$(.*?)(?=^FROM|\Z)", docker, re.MULTILINE | re.DOTALL))
    assert stages.keys() == {"cpu", "cuda"}
    for stage, text in stages.items():
        assert text.rstrip().endswith("USER ray\nWORKDIR /home/ray"), f"{stage} ends as root"
        installs = re.findall(r"pip install .+", text)
        assert installs and all("-c constraints.txt" in line for line in installs), f"{stage}: not pinned"
    copied = {path for line in re.findall(r"^COPY (?!--from)(.+) \S+$", docker, re.MULTILINE) for path in line.split()}
    assert all((ROOT / path).exists() for path in copied), "what is copied is there"
    assert "infra/k8s/submit.py" in copied
