"""Submit a RayJob, or join the one of that name, wait for it, and end with its exit code.

    python infra/k8s/submit.py [--template birder-ray] [--name NAME] [--namespace NS] [--pipeline FILE] [-- MORE...]

The template is a suspended RayJob in the cluster (infra/k8s/base); the job is a copy of it that is not suspended.
Whoever submits the same name again joins: a pod of a CronJob that is started a second time goes on waiting. What comes
after `--` is added to the entrypoint, e.g. `--set source.limit=1000`. With --pipeline, a line a minute says how far the
run is, from its commits. Needs kubectl, with a context or in a pod.

Exit codes: those of birder-ray (0 done, 1 failed, 2 a mistake in the pipeline file); 1 where the job never came to run.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

LONGEST_NAME = 47
FINAL = {"Complete", "Failed", "ValidationFailed"}
TRIES = 20
_EXIT_CODE = re.compile(r"exit code (\d+)")
_PASSING = re.compile(
    r"connection refused|timed? ?out|TLS handshake|EOF|unavailable|too many requests|Unable to connect", re.I
)


class Problem(Exception):
    """What kubectl said."""


def main(sleep: Callable[[float], None] = time.sleep) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="birder-ray", help="name of the suspended RayJob")
    parser.add_argument("--name", help=f"of the job, at most {LONGEST_NAME} characters [default: TEMPLATE-TIME]")
    parser.add_argument("--namespace", default="birder-ray")
    parser.add_argument("--pipeline", help="the job's pipeline file, to tell how far the run is")
    parser.add_argument("--poll-s", type=float, default=20.0, help="seconds between two looks at the job")
    parser.add_argument("more", nargs="*", help="added to the entrypoint, after --")
    told = parser.parse_args()
    name = told.name or f"{told.template}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    if len(name) > LONGEST_NAME:
        return fail(f"{name}: longer than the {LONGEST_NAME} characters that KubeRay takes", 2)
    try:
        template = get(told.template, told.namespace, sleep)
        joined = not create(job(template, name, told.more), told.namespace, sleep)
        say(f"{'joined' if joined else 'submitted'} RayJob {name}")
        return wait(name, told, sleep)
    except Problem as problem:
        return fail(str(problem), 1)


def job(template: dict[str, Any], name: str, more: list[str]) -> dict[str, Any]:
    """The template's copy that runs."""
    spec = {**template["spec"], "suspend": False}
    spec["entrypoint"] = " ".join([spec["entrypoint"], *map(shlex.quote, more)])
    labels = {**template["metadata"].get("labels", {}), "birder-ray/template": template["metadata"]["name"]}
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": template["apiVersion"], "kind": "RayJob", "metadata": metadata, "spec": spec}


def get(name: str, namespace: str, sleep: Callable[[float], None]) -> dict[str, Any]:
    """Raises Problem where there is no such RayJob."""
    found: dict[str, Any] = json.loads(kubectl(["get", "rayjob", name, "--namespace", namespace, "-o", "json"], sleep))
    return found


def create(body: dict[str, Any], namespace: str, sleep: Callable[[float], None]) -> bool:
    """Whether it was created; False: it is there already. Raises Problem where it is refused."""
    try:
        # The server validates; kubectl's own check would download the schema of everything first
        kubectl(["create", "--namespace", namespace, "--validate=false", "-f", "-"], sleep, json.dumps(body))
    except Problem as problem:
        if "AlreadyExists" in str(problem):
            return False
        raise
    return True


def wait(name: str, told: argparse.Namespace, sleep: Callable[[float], None]) -> int:
    """The exit code of the job, once it has ended."""
    shown, said_at = "", -60.0
    while True:
        status = get(name, told.namespace, sleep).get("status") or {}
        state, message = status.get("jobDeploymentStatus", "Waiting"), status.get("message", "")
        if state != shown:
            say(f"{name}: {state}")
            shown = state
        if state in FINAL:
            if status.get("jobStatus") == "SUCCEEDED":
                return 0
            code = _EXIT_CODE.search(message)
            reason = status.get("reason", "")
            return fail(f"{name}: {reason or state} {message}".strip(), int(code[1]) if code else 1)
        if told.pipeline and state == "Running" and time.monotonic() - said_at >= 60:
            said_at = time.monotonic()
            say(progress(told.pipeline))
        sleep(told.poll_s)


def progress(pipeline: str) -> str:
    """How far the run is, from the commits alone."""
    from birder_ray.config import RunConfig
    from birder_ray.errors import BirderRayError
    from birder_ray.verify import status

    try:
        config = RunConfig.from_yaml(pipeline)
        found = status(config.destination, config.destination_options)
    except BirderRayError as error:
        return f"no commits yet: {error}"
    totals = found.totals
    return (
        f"{totals.rows:,} images scored, {totals.errors:,} quarantined, {totals.units:,} units; "
        f"{found.ended:,} of {found.shards:,} shards done"
    )


def kubectl(arguments: list[str], sleep: Callable[[float], None], stdin: str = "") -> str:
    """What it prints. Tries again for some minutes where the API server does not answer. Raises Problem."""
    for attempt in range(TRIES):
        done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if attempt == TRIES - 1 or not _PASSING.search(done.stderr):
            break
        sleep(min(30.0, 2.0**attempt))
    raise Problem(done.stderr.strip() or f"kubectl {' '.join(arguments)}: exit code {done.returncode}")


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def fail(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
