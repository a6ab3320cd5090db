"""Queries that would take the values of several networks for those of one are refused, and no others."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pytest

from lsap_archive.reading.unnamed_by import ByCheck, UnnamedByError

NETWORKS = {
    "measurements": {
        "lpips": ["alex", "vgg"],
        "identity": ["", "judge"],
        "mse": [""],
        "sncd": [""],
        "slant": ["digits"],
    },
    "all_measurements": {"lpips": ["alex", "vgg"], "identity": ["", "judge"], "mse": ["", "older"]},
}
AGGREGATES = frozenset({"avg", "max", "count", "count_star", "list", "any_value", "string_agg"})


def check(query: str, **params: Any) -> None:
    with duckdb.connect() as connection:
        found = connection.execute("select json_serialize_sql($q::varchar)", {"q": query}).fetchone()
    parsed = json.loads(found[0])
    assert not parsed["error"], parsed["error_message"]
    ByCheck(NETWORKS, AGGREGATES, params).check(parsed)


@pytest.mark.parametrize(
    "query",
    [
        "select avg(value) from measurements",
        "select avg(value) from measurements where measure = 'lpips'",
        "select measure, avg(value) from measurements group by measure",
        "select avg(m.value) from main.measurements m where m.measure = 'identity'",
        "select avg(value) from measurements where measure in ('mse', 'lpips')",
        "select avg(value) from measurements where measure like 'lp%'",
        "select avg(value) from measurements where measure <> 'mse'",
        "select avg(value) from measurements where not measure = 'mse'",
        "select avg(value) from all_measurements where measure = 'mse'",
        "with m as (select * from measurements) select avg(value) from m where measure = 'lpips'",
        "with m as (from measurements), n as (from m) select measure, max(value) from n group by all",
        """with m as (select "by", value from measurements where measure = 'lpips') select avg(value) from m""",
        """with m as (select "by" as network, value as v from measurements) select avg(v) from m""",
        """with m(a, b) as (select value, "by" from measurements) select avg(a) from m""",
        "select avg(v) from (select 2 * value as v from measurements) s",
        "select avg(value) from (select * from measurements) s(a, b, c, d, e, f, g, h, i, value)",
        "select (select avg(value) from measurements where measure = 'lpips')",
        "select (select avg(value) from measurements where measure = 'mse'), (select avg(value) from measurements)",
        "select avg(value) from measurements where measure = 'mse' union all select avg(value) from measurements",
        "select avg(value) from (select * from measurements union all select * from all_measurements)",
        "select image_id from latest where image_id in (select image_id from measurements where value > 1)",
        "select image_id, value from measurements where measure = 'lpips'",
        "select image_id from measurements where measure = 'lpips' order by value desc limit 10",
        "select count(*) from measurements where measure = 'lpips' and value > 0.5",
        "select distinct value from measurements where measure = 'lpips'",
        """select "by", value, avg(value) over (partition by measure) from measurements""",
        "select l.uri, avg(m.value) from latest l join measurements m using (run_id, row) group by all",
        """select avg(b.value) from measurements a join measurements b using (image_id) where a."by" = 'alex'""",
        "select avg(value) filter (measure = 'lpips') from measurements",
        "summarize measurements",
        "summarize select value from measurements where measure = 'lpips'",
        "pivot measurements on measure in ('mse', 'lpips') using avg(value) group by image_id",
        'select * exclude ("by") from measurements',
        "select columns('val.*') from measurements",
        "with recursive m as (select value from measurements union all select value from m) select avg(value) from m",
    ],
)
def test_what_would_mix_networks_is_refused(query: str) -> None:
    with pytest.raises(UnnamedByError, match=r'was measured by .*: add where "by" = .* group by it'):
        check(query)


@pytest.mark.parametrize(
    "query",
    [
        "select avg(value) from measurements where measure = 'mse'",
        "select avg(value) from measurements where measure = 'slant'",
        "select measure, avg(value) from measurements where measure in ('mse', 'sncd') group by measure",
        "select avg(value) from measurements where measure like 's%'",
        "select avg(value) from measurements where starts_with(measure, 'mse')",
        "select avg(value) from measurements where measure not in ('lpips', 'identity')",
        "with m as (select * from measurements) select avg(value) from m where measure = 'mse'",
        "with m as (select image_id, measure, value from measurements) select avg(value) from m where measure = 'mse'",
        """with m as (select measure, avg(value) as v from measurements group by all)
           select v from m where measure = 'mse'""",
        """select avg(value) from measurements where measure = 'lpips' and "by" = 'alex'""",
        """select measure, "by", avg(value) from measurements group by measure, "by\"""",
        """select measure, "by", avg(value) from measurements group by all""",
        """select "BY", avg(Value) from Measurements group by all""",
        """select avg(value) filter ("by" = 'alex') from measurements""",
        """select count(distinct "by"), avg(value) from measurements""",
        """with m as (select * from measurements where "by" = 'alex') select avg(value) from m""",
        """with m as (from measurements) select "by", avg(value) from m group by all""",
        """with m as (select "by" as network, value as v from measurements) select network, avg(v) from m group by 1""",
        """select avg(a.value - b.value) from measurements a join measurements b using (image_id, measure, "by")
           where a."by" = 'alex'""",
        """select image_id, "by", value from measurements""",
        """select avg(value) over (partition by measure, "by") from measurements""",
        """select (select avg(value) from measurements m where m."by" = 'vgg') from latest""",
        "select * from measurements",
        "from measurements order by value desc limit 10",
        "select count(*) from measurements",
        "select image_id, count(*) from measurements group by all order by all",
        "select distinct measure from measurements",
        "select method, count(*) from measurements where problem is not null group by method",
        "describe measurements",
        "pivot measurements on \"by\" in ('alex', 'vgg') using avg(value) group by image_id",
        "select avg(lpips) from latest",
        "select value from (select 1 as value) t, latest",
        "with measurements as (select 1 as value) select avg(value) from measurements",
        "select avg(s.value) from set_numbers s",
    ],
)
def test_what_mixes_nothing_is_answered(query: str) -> None:
    check(query)


def test_a_measure_may_be_a_parameter() -> None:
    check("select avg(value) from measurements where measure = $measure", measure="mse")
    check("select avg(value) from measurements where list_contains($measures, measure)", measures=["mse", "sncd"])
    with pytest.raises(UnnamedByError, match="lpips was measured by alex, vgg"):
        check("select avg(value) from measurements where measure = $measure", measure="lpips")


def test_the_message_says_what_to_write() -> None:
    with pytest.raises(UnnamedByError) as caught:
        check("select avg(value) from measurements where measure = 'identity'")
    assert (caught.value.measure, caught.value.by) == ("identity", ("", "judge"))
    assert "identity was measured by null, judge" in str(caught.value) and "\"by\" = 'judge'" in str(caught.value)
