"""submit.py with the real kubectl against a small API server."""

import importlib.util
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).resolve().parents[1] / "infra/k8s/submit.py"
PATH = "/apis/ray.io/v1/namespaces/birder-ray/rayjobs"

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")

spec = importlib.util.spec_from_file_location("submit", SCRIPT)
submit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(submit)


class Api(ThreadingHTTPServer):
    """As much of an API server as RayJobs need. `states`: what becomes of a job that was created, look by look."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        template = {"spec": {"suspend": True, "entrypoint": "birder-ray rerun /etc/p.yaml", "backoffLimit": 6}}
        meta = {"name": "birder-ray", "namespace": "birder-ray", "uid": "1", "resourceVersion": "7"}
        meta["labels"] = {"app.kubernetes.io/name": "birder-ray"}
        self.jobs = {"birder-ray": {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, **template}}
        self.states: list[dict] = []
        self.created: list[dict] = []
        self.failing = 0
        self.refuse = ""


class Handler(BaseHTTPRequestHandler):
    server: Api

    def log_message(self, *_):
        pass

    def answer(self, code: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def status(self, code: int, reason: str, message: str) -> None:
        kind = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
        self.answer(code, {**kind, "reason": reason, "message": message, "code": code})

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/api":
            return self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            version = {"groupVersion": "ray.io/v1", "version": "v1"}
            group = {"name": "ray.io", "versions": [version], "preferredVersion": version}
            return self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})
        if path in ("/api/v1", "/apis/ray.io/v1"):
            job = {"name": "rayjobs", "singularName": "rayjob", "namespaced": True, "kind": "RayJob"}
            resources = [{**job, "verbs": ["get", "create"]}] if "ray.io" in path else []
            return self.answer(
                200, {"kind": "APIResourceList", "groupVersion": path.rpartition("apis/")[2], "resources": resources}
            )
        if self.server.failing:
            self.server.failing -= 1
            return self.status(503, "ServiceUnavailable", "the server is currently unavailable")
        found = self.server.jobs.get(path.rpartition("/")[2])
        if found is None:
            return self.status(404, "NotFound", f'rayjobs.ray.io "{path.rpartition("/")[2]}" not found')
        if found["metadata"]["name"] != "birder-ray" and self.server.states:
            found = {**found, "status": self.server.states.pop(0)}
            self.server.jobs[found["metadata"]["name"]] = found
        return self.answer(200, found)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        if self.server.refuse:
            return self.status(422, "Invalid", self.server.refuse)
        if name in self.server.jobs:
            return self.status(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        self.server.jobs[name] = body
        self.server.created.append(body)
        return self.answer(201, body)


@pytest.fixture
def api(tmp_path, monkeypatch):
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
        "current-context": "c",
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["submit.py", *arguments])
    code = submit.main(sleep=lambda seconds: None)
    return code, *capsys.readouterr()


RUNNING, DONE = {"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def test_a_job_is_submitted_and_waited_for(api, monkeypatch, capsys):
    api.states = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, RUNNING, DONE]
    code, out, err = call(monkeypatch, capsys, "--name", "night-1", "--", "--set", "source.limit=10")
    assert (code, err) == (0, "")
    assert [line.partition(" ")[2] for line in out.splitlines()] == [
        "submitted RayJob night-1", "night-1: Waiting", "night-1: Initializing", "night-1: Running",
        "night-1: Complete",
    ]  # fmt: skip
    (made,) = api.created
    assert made["spec"] == {
        "suspend": False,
        "entrypoint": "birder-ray rerun /etc/p.yaml --set source.limit=10",
        "backoffLimit": 6,
    }
    assert made["metadata"].keys() <= {"name", "namespace", "labels"}, "nothing of the template's own identity"


def test_a_second_attempt_joins(api, monkeypatch, capsys):
    api.states = [DONE]
    assert call(monkeypatch, capsys, "--name", "night-1")[0] == 0
    api.states = [RUNNING, DONE]
    code, out, _ = call(monkeypatch, capsys, "--name", "night-1")
    assert code == 0 and "joined RayJob night-1" in out and len(api.created) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"message": "Job entrypoint command failed with exit code 2, last available logs", "reason": "AppFailed"}, 2),
        ({"message": "Job entrypoint command failed with exit code 1", "reason": "AppFailed"}, 1),
        ({"reason": "DeadlineExceeded"}, 1),
    ],
)
def test_a_failure_is_passed_on(api, monkeypatch, capsys, status, code):
    api.states = [RUNNING, {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", **status}]
    found, _, err = call(monkeypatch, capsys, "--name", "night-1")
    assert found == code and status["reason"] in err


def test_a_server_that_is_away_for_a_moment_is_asked_again(api, monkeypatch, capsys):
    api.failing, api.states = 3, [DONE]
    assert call(monkeypatch, capsys, "--name", "night-1")[0] == 0


def test_mistakes_are_one_line(api, monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, "--template", "other")
    assert code == 1 and 'rayjobs.ray.io "other" not found' in err
    code, _, err = call(monkeypatch, capsys, "--name", "n" * 48)
    assert code == 2 and "longer than the 47 characters" in err
    api.refuse = "spec.entryPoint: unknown field"
    code, _, err = call(monkeypatch, capsys, "--name", "night-2")
    assert code == 1 and "unknown field" in err and err.count("\n") == 1


def test_progress_comes_from_the_commits(tmp_path):
    from birder_ray.folder import Folder
    from tests.built import build

    file = tmp_path / "p.yaml"
    file.write_text(f"source: /data\nmodel: m\ndestination: {tmp_path / 'out'}\n")
    assert submit.progress(str(file)).startswith("no commits yet: ")
    build(Folder(str(tmp_path / "out")), {"a.tar": 25}, finish=False)
    assert submit.progress(str(file)) == "24 images scored, 2 quarantined, 3 units; 1 of 1 shards done"
