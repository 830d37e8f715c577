"""Grafana's dashboard asks only for metrics and labels that exist; planted faults are found."""

import ast
import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.dashboard import consts
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels as rays

from birder_ray import metrics
from birder_ray.metrics import BatchSize, exported
from birder_ray.schema import DECODE, ERRORS, INFER, OUTPUT_TABLES, READ, TRANSFER, WAIT

MONITORING = Path(__file__).resolve().parents[1] / "infra/monitoring"
RAY = Path(consts.__file__).parents[1]
PROMTOOL = shutil.which("promtool")
GIVEN = {"__range": "6h"}  # Grafana's own variables, and what they may be
OKABE_ITO = {"#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000"}
Doc = dict[str, Any]
Labels = dict[str, set[str]]

GROUPING = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
METRIC = r"(?<![\w:])(?!(?:and|or|unless|bool|offset)\b)([A-Za-z_:][\w:]*)(?![\w:]|\s*\()(?:{([^}]*)})?"


def asked(expression: str) -> tuple[Labels, set[str]]:
    """Metrics, each with the labels that it is chosen by, and the labels that anything is grouped by."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    grouped = {label for labels in re.findall(GROUPING, bare) for label in re.findall(r"\w+", labels)}
    found: Labels = {}
    for name, labels in re.findall(METRIC, re.sub(GROUPING, "", bare)):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", labels))
    return found, grouped


@pytest.fixture(scope="module")
def known() -> Labels:
    """Every metric, by its name in Prometheus, and its labels."""
    filters = ",".join(rays.default_dashboard_config.standard_global_filters)
    everywhere = {"SessionName", "instance", "job"}  # Ray's, as its own dashboard filters all by it; Prometheus's
    found: Labels = {}
    # Of Ray's binary: what Ray's own dashboard asks for, if the binary has such a name, as the dashboard may be behind
    binary = (RAY / "core/src/ray/raylet/raylet").read_bytes()
    for target in (target for row in rays.DEFAULT_GRAFANA_ROWS for panel in row.panels for target in panel.targets):
        used, grouped = asked(target.expr.format(global_filters=filters))
        for name, labels in used.items():
            if name.removeprefix("ray_").removesuffix("_total").encode() in binary:
                found.setdefault(name, set(everywhere)).update(labels - {"ray_io_cluster"}, grouped)
    # Of Ray's agents: read, as it cannot be imported without ray[default]
    for node in ast.walk(ast.parse((RAY / "dashboard/modules/reporter/reporter_agent.py").read_text())):
        match node:
            case ast.Call(func=ast.Name("Gauge"), args=[ast.Constant(name), _, _, ast.Name(tags)]):
                found[f"ray_{name}"] = everywhere | set(getattr(consts, tags))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Gauge, "set", lambda *_: None)
        with exported("recipe", "run") as of_run:
            ours = [*vars(of_run).values(), BatchSize("recipe").gauge]
    for info, suffix in (
        (each.info, "_total" * isinstance(each, metrics.Counter)) for each in ours if hasattr(each, "info")
    ):
        found[f"ray_{info['name']}{suffix}"] = everywhere | set(info["tag_keys"])
    return found


def queries(board: Doc) -> Iterator[tuple[str, Doc, str, str]]:
    """Where, the query, its expression and legend; a variable's values are those of a label."""
    for each in board["templating"]["list"]:
        if each["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", each["query"]["query"]).groups()
            yield f"${each['name']}", each, f"group by ({label}) ({metric})", ""
    for panel in board["panels"]:
        for each in panel.get("targets", []):
            yield f"{panel['title']} {each['refId']}", each, each["expr"], each["legendFormat"]


def problems(board: Doc, known: Labels) -> list[str]:
    found: list[str] = []
    variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    text = json.dumps(board, ensure_ascii=False)

    def want(good: object, text: str) -> None:
        if not good:
            found.append(text)

    for where, _, expression, legend in queries(board):
        used, grouped = asked(expression)
        want(used, f"{where}: asks for nothing")
        for name, labels in used.items():
            want(name in known, f"{where}: no metric {name}")
            missing = (labels | grouped) - known.get(name, labels | grouped)
            want(not missing, f"{where}: {name} has no {missing}")
        want(set(re.findall(r"{{(.*?)}}", legend)) <= grouped, f"{where}: nothing is grouped by what {legend} says")
    for where, each, *_ in (*queries(board), *((panel["title"], panel) for panel in shown)):
        source = each.get("datasource", {}).get("uid", "")
        want(variables.get(source.strip("${}")) == "datasource", f"{where}: datasource {source!r}")
    undefined = set(re.findall(r"\$\{?(\w+)", text.replace("$__all", ""))) - variables.keys() - GIVEN.keys()
    want(not undefined, f"no variable {undefined}")
    want(not re.search(r"https?://|\b\d+\.\d+\.\d+\.\d+\b|localhost", text), "a host of somebody's")
    want(len({panel["id"] for panel in board["panels"]}) == len(board["panels"]), "an id twice")
    taken: dict[tuple[int, int], Doc] = {}
    for panel in board["panels"]:
        at, title = panel["gridPos"], panel["title"]
        want(at["x"] >= 0 and at["x"] + at["w"] <= 24, f"{title}: wider than the dashboard")
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            other = taken.setdefault(cell, panel)
            want(other is panel, f"{title}: lies on {other['title']}")
    for panel in shown:
        title, refs = panel["title"], {target["refId"] for target in panel["targets"]}
        want(len(refs) == len(panel["targets"]) > 0, f"{title}: two queries of one name, or none")
        want(re.fullmatch(r".{20,120}", panel.get("description", "")), f"{title}: no line that explains it")
        want(panel["fieldConfig"]["defaults"].get("unit"), f"{title}: no unit")
    strange = set(re.findall(r'(?:[cC]olor": |mode": (?="palette))"(.*?)"', text)) - OKABE_ITO
    want(not strange, f"not all can tell {strange} apart")
    return found


def panel(board: Doc, title: str = "CPU utilisation") -> Doc:
    return next(panel for panel in board["panels"] if panel["title"] == title)


def query(board: Doc, old: str, new: str, title: str = "CPU utilisation") -> None:
    target = panel(board, title)["targets"][0]
    assert old in target["expr"]
    target["expr"] = target["expr"].replace(old, new)


@pytest.fixture(scope="module")
def board() -> Doc:
    return json.loads((MONITORING / "dashboard.json").read_text())


def test_everything_that_the_dashboard_asks_for_exists(board, known):
    assert problems(board, known) == [] and board["uid"] and board["title"] and board["schemaVersion"] >= 39


def test_steps_and_tables_are_those_of_the_code(board):
    steps, tables = {READ, DECODE, INFER, "write"}, {"images read", ERRORS, *OUTPUT_TABLES}
    for title, names in (("Workers' time, by step", steps), ("Bytes read and written", tables)):
        assert {each["matcher"]["options"] for each in panel(board, title)["fieldConfig"]["overrides"]} == names
    assert set(re.findall(r'step!~."(.*?)."', json.dumps(board))) == {f"{WAIT}|{TRANSFER}"}


FAULTS: dict[str, Callable[[Doc], Any]] = {
    "no metric ray_node_cpus_count": lambda board: query(board, "ray_node_cpu_count", "ray_node_cpus_count"),
    "no metric ray_birder_ray_image_total": lambda board: query(board, "images_total", "image_total", "Images scored"),
    "no metric ray_birder_ray_images": lambda board: query(board, "images_total", "images", "Images scored"),
    "no metric ray_object_store_bytes": lambda board: query(board, "store_memory", "store_bytes", "Spilled to disk"),
    "ray_node_cpu_count has no {'NodeType'}": lambda board: query(board, "RayNodeType", "NodeType"),
    "ray_object_store_memory has no {'Place'}": lambda board: query(board, "Location=", "Place=", "Spilled to disk"),
    "_total has no {'step'}": lambda board: query(board, "by (recipe)", "by (recipe, step)", "Images scored"),
    "what {{node}} says": lambda board: panel(board)["targets"][0].update(legendFormat="{{node}}"),
    "two queries of one name": lambda board: panel(board, "GPU utilisation")["targets"][1].update(refId="A"),
    "CPU utilisation: lies on GPU": lambda board: panel(board)["gridPos"].update(x=7),
    "wider than the dashboard": lambda board: panel(board, "Nodes")["gridPos"].update(x=20),
    "an id twice": lambda board: panel(board).update(id=1),
    "no variable {'cluster'}": lambda board: query(board, "$session", "$cluster"),
    "no variable {'__rage'}": lambda board: query(board, "$__range", "$__rage", "Images scored"),
    "no variable {'recipe'}": lambda board: board["templating"]["list"].pop(1),
    "$recipe: no metric up": lambda board: board["templating"]["list"][1]["query"].update(query="label_values(up, x)"),
    "CPU utilisation: datasource ''": lambda board: panel(board).pop("datasource"),
    "CPU utilisation A: datasource ''": lambda board: panel(board)["targets"][0].pop("datasource"),
    "datasource 'P1809F7CD0C75ACF3'": lambda board: panel(board)["datasource"].update(uid="P1809F7CD0C75ACF3"),
    "a host": lambda board: board["links"].append({"url": "http://grafana.example"}),
    "no unit": lambda board: panel(board)["fieldConfig"]["defaults"].pop("unit"),
    "not all can tell {'green'} apart": lambda board: panel(board)["fieldConfig"].update(color="green"),
}  # fmt: skip


@pytest.mark.parametrize("complaint", FAULTS)
def test_a_planted_fault_is_found(board, known, complaint):
    faulty = copy.deepcopy(board)
    FAULTS[complaint](faulty)
    assert complaint in "\n".join(problems(faulty, known))


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")
@pytest.mark.parametrize("fault", [False, True])
def test_prometheus_takes_every_query(board, fault):
    expressions = [re.sub(r"\$(\w+)", lambda found: GIVEN.get(found[1], "x"), each) for *_, each, _ in queries(board)]
    expressions[0] += ")" * fault
    rules = [{"record": f"x{n}", "expr": expression} for n, expression in enumerate(expressions)]
    told = yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]})
    command = [PROMTOOL, "check", "rules", "/dev/stdin"]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    assert ("SUCCESS" in done.stdout, "parse error" in done.stderr) == (not fault, fault), done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_the_sidecar_finds_it(board):
    done = subprocess.run(["kubectl", "kustomize", MONITORING], capture_output=True, text=True, check=True)
    (config,) = [doc for doc in yaml.safe_load_all(done.stdout) if doc["kind"] == "ConfigMap"]
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(config["data"]["dashboard.json"]) == board
