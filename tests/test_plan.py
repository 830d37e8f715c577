"""The plan: the same units from the same shards, whatever is committed already."""

import pytest

from birder_ray.commit import Ledger
from birder_ray.folder import Folder
from birder_ray.parts import Part
from birder_ray.plan import UNITS_PER_TASK, make_plan, unit_name, unit_prefix
from birder_ray.record import Record, record_name
from birder_ray.source.base import Shard

ROWS = 10


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(Folder(str(tmp_path)))


def _tar(name: str = "a.tar", fingerprint: str = "f") -> Shard:
    return Shard(f"/data/{name}", name, "tar", fingerprint)


def _folder(count: int, name: str = "photos") -> Shard:
    return Shard(f"/data/{name}", name, "images", "f", count=count)


def _commit(ledger: Ledger, shard: Shard, number: int, recipe: str = "r", **facts) -> str:
    unit = unit_name(unit_prefix(recipe, ROWS, shard), number)
    told = {
        "samples": ROWS,
        "rows": ROWS,
        "errors": 0,
        "end": False,
        "limited": False,
        "damaged": False,
        "parts": {},
    } | facts
    record = Record(unit=unit, shard=shard.name, recipe=recipe, **told)
    parts = {table: vars(part) for table, part in record.parts.items()}
    ledger.folder.write_json(record_name(unit), {**vars(record), "parts": parts})
    return unit


def _todo(plan, horizon: int = 30) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for work in plan.work:
        found.setdefault(work.shard.name, []).extend(n for n in range(horizon) if work.todo(n))
    return found


def test_unit_names_depend_on_recipe_path_and_content_only():
    names = {
        unit_prefix("r", ROWS, _tar()),
        unit_prefix("s", ROWS, _tar()),
        unit_prefix("r", ROWS, _tar("b.tar")),
        unit_prefix("r", ROWS, _tar(fingerprint="g")),
        unit_prefix("r", ROWS + 1, _tar()),
    }
    assert len(names) == 5
    moved = Shard("s3://bucket/a.tar", "a.tar", "tar", "f", size=3)
    assert unit_prefix("r", ROWS, moved) == unit_prefix("r", ROWS, _tar())


def test_unit_names_are_safe_file_names():
    name = unit_name(unit_prefix("r", ROWS, _tar("ein Ordner/../größe <b>\n'x'.tar")), 3)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_a_tar_of_unknown_length_is_one_open_ended_task(ledger):
    plan = make_plan([_tar()], "r", ROWS, ledger)
    (work,) = plan.work
    assert (work.first, work.stop, work.units, plan.units_todo, plan.samples) == (0, None, None, None, None)


def test_a_tar_goes_on_after_its_commits(ledger):
    done = {_commit(ledger, _tar(), n) for n in (0, 1, 3)}
    plan = make_plan([_tar()], "r", ROWS, ledger)
    assert plan.done == done
    assert _todo(plan, 6) == {"a.tar": [2, 4, 5]}
    assert plan.work[0].first == 2


def test_a_tar_whose_end_is_committed_is_done_when_every_unit_is(ledger):
    _commit(ledger, _tar(), 2, end=True)
    _commit(ledger, _tar(), 0)
    plan = make_plan([_tar()], "r", ROWS, ledger)
    assert (_todo(plan), plan.units_todo) == ({"a.tar": [1]}, 1)
    _commit(ledger, _tar(), 1)
    assert make_plan([_tar()], "r", ROWS, ledger).work == []


@pytest.mark.parametrize(("count", "units"), [(0, 1), (1, 1), (10, 1), (11, 2), (200, 20)])
def test_known_counts_give_units_and_small_tasks(ledger, count, units):
    plan = make_plan([_folder(count)], "r", ROWS, ledger)
    assert _todo(plan) == {"photos": list(range(units))}
    assert (plan.units_todo, plan.samples) == (units, count)
    assert all(work.stop - work.first <= UNITS_PER_TASK for work in plan.work)


def test_known_counts_leave_out_what_is_committed(ledger):
    for n in (0, 7, 8, 19):
        _commit(ledger, _folder(200), n)
    plan = make_plan([_folder(200)], "r", ROWS, ledger)
    assert _todo(plan) == {"photos": [n for n in range(20) if n not in (0, 7, 8, 19)]}


def test_commits_of_other_recipes_and_contents_are_foreign(ledger):
    _commit(ledger, _tar(), 0)
    other = _commit(ledger, _tar(), 0, recipe="another")
    changed = _commit(ledger, _tar(fingerprint="before"), 0)
    plan = make_plan([_tar()], "r", ROWS, ledger)
    assert plan.foreign == {other, changed}


@pytest.mark.parametrize(("limit", "todo"), [(5, {"a": [0]}), (20, {"a": [0, 1]}), (27, {"a": [0, 1, 2], "b": [0]})])
def test_a_limit_takes_the_first_samples(ledger, limit, todo):
    shards = [_folder(25, "a"), _folder(25, "b")]
    plan = make_plan(shards, "r", ROWS, ledger, limit)
    assert _todo(plan) == todo
    assert plan.samples == limit
    assert plan.work[-1].sample_stop == limit - (25 if "b" in todo else 0)


def test_a_limit_counts_tars_no_further_than_it_must(ledger):
    asked = []

    def count(shard: Shard, at_most: int) -> int:
        asked.append((shard.name, at_most))
        return min(at_most, 15)

    plan = make_plan([_tar("a.tar"), _tar("b.tar"), _tar("c.tar")], "r", ROWS, ledger, 20, count)
    assert asked == [("a.tar", 20), ("b.tar", 5)]
    assert [work.sample_stop for work in plan.work] == [None, 5]


def test_a_unit_cut_by_a_limit_is_done_for_that_limit_only(ledger):
    unit = _commit(ledger, _folder(25), 0, samples=5, rows=5, limited=True)
    assert make_plan([_folder(25)], "r", ROWS, ledger, 5).work == []
    for limit in (3, 7, None):
        plan = make_plan([_folder(25)], "r", ROWS, ledger, limit)
        assert 0 in _todo(plan)["photos"]
        assert plan.redo == {unit}


def test_retrying_errors_redoes_their_units_and_looks_for_the_end_again(ledger):
    shard = _tar()
    _commit(ledger, shard, 0)
    bad = _commit(ledger, shard, 1, end=True, errors=1, samples=4, rows=3, parts={"errors": Part(1, 1, "x")})
    ledger.folder.write(f"errors/{bad}.parquet", b"x")
    assert make_plan([shard], "r", ROWS, ledger).work == []
    plan = make_plan([shard], "r", ROWS, ledger, redo_errors=True)
    assert (plan.redo, plan.work[0].first, plan.work[0].stop) == ({bad}, 1, None)


def test_a_damaged_record_is_named(ledger):
    unit = _commit(ledger, _tar(), 0)
    ledger.folder.write(record_name(unit), b"{")
    with pytest.raises(Exception, match="damaged commit record"):
        make_plan([_tar()], "r", ROWS, ledger)


@pytest.mark.parametrize(("limited", "stop"), [(False, None), (True, 5)])
def test_a_unit_that_lacks_a_table_keeps_its_rows_whatever_the_limit(ledger, limited, stop):
    """Found by chaos seed 96: a listing without the units after it."""
    unit = _commit(ledger, _folder(25), 0, limited=limited, samples=5 if limited else ROWS)
    plan = make_plan([_folder(25)], "r", ROWS, ledger, 5, adding=["features"])
    assert (plan.grow, plan.redo, plan.done) == ({unit}, set(), set())
    assert [(work.first, work.stop, work.sample_stop) for work in plan.work] == [(0, 1, stop)]


def test_a_unit_that_is_to_be_made_again_does_not_grow(ledger):
    unit = _commit(ledger, _folder(25), 2, limited=True, samples=3)
    plan = make_plan([_folder(25)], "r", ROWS, ledger, adding=["features"])
    assert (plan.grow, plan.redo) == (set(), {unit})
