"""The taxonomy of school mathematics, and the topics of TAL-SCQ5K."""

import re
from collections import Counter
from pathlib import Path

import orjson
import pytest
import yaml

from dsm_engine.data.example import ExampleFault
from dsm_engine.data.sources.records import read_records
from dsm_engine.data.sources.registry import make_reader
from dsm_engine.data.sources.rows import parse_object
from dsm_engine.data.sources.topics import TOPICS_PATH, Taxonomy, k12_taxonomy, route_parts

SMALL = Taxonomy(
    {
        "algebra": {
            "english": "Algebra",
            "chinese": "代数",
            "subtopics": {
                "equations": {"english": "E", "chinese": "方程", "routes": ["方程", "式->方程"]},
                "quadratics": {"english": "Q", "chinese": "二次", "routes": ["方程->二次"]},
                "skill": {"english": "S", "chinese": "能力", "broad": True, "routes": ["运算"]},
            },
        }
    }
)
QUADRATIC, EQUATION, SKILL = (
    "课内->知识点->方程->二次->根",
    "课内->知识点->方程->一次",
    "课内->能力->运算",
)
UNKNOWN = "课内->知识点->天文"


def record(routes: list[str] | None) -> bytes:
    return orjson.dumps(
        {
            "queId": "q1",
            "problem": "Solve for the unknown.",
            "answer_option_list": [[{"aoVal": "A", "content": "one"}]],
            "knowledge_point_routes": routes,
            "answer_analysis": ["Subtract, then divide."],
            "answer_value": "A",
        }
    )


def topic(tmp_path: Path, routes: list[str] | None, **options) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(record(routes))
    reader = make_reader("tal_scq5k", options=options)
    (row,) = reader.rows(path)
    return reader.example(row).topic


@pytest.fixture(scope="module")
def published(shared_folder: Path) -> list[list[str]]:
    """The routes of every question of the four published files."""
    files = sorted((shared_folder / "data" / "tal_scq5k").glob("*.jsonl.gz"))
    assert len(files) == 4
    records = (parse_object(row) for file in files for row in read_records(file))
    return [record["knowledge_point_routes"] for record in records]


def test_there_are_76_subtopics_with_an_id_and_two_names_of_their_own():
    subtopics = list(k12_taxonomy().subtopics.values())
    assert len(subtopics) == 76
    for field in ("id", "english", "chinese"):
        assert len({getattr(subtopic, field) for subtopic in subtopics}) == 76
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", subtopic.id) for subtopic in subtopics)
    assert all(re.search("[\u4e00-\u9fff]", subtopic.chinese) for subtopic in subtopics)
    assert {subtopic.area for subtopic in subtopics} == set(k12_taxonomy().area_names)


def test_no_route_stands_under_two_subtopics():
    areas = yaml.safe_load(TOPICS_PATH.read_text(encoding="utf-8")).values()
    lists = [values["routes"] for area in areas for values in area["subtopics"].values()]
    routes = [route_parts(route) for routes in lists for route in routes]
    assert [route for route, count in Counter(routes).items() if count > 1] == []


def test_no_rule_repeats_what_a_shorter_one_says():
    rules = k12_taxonomy().rules
    for rule, subtopic in rules.items():
        shorter = [rule[:length] for length in range(len(rule) - 1, 0, -1)]
        general = next((beginning for beginning in shorter if beginning in rules), None)
        assert general is None or rules[general] is not subtopic, rule


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([QUADRATIC], "quadratics"),
        ([EQUATION], "equations"),
        (["竞赛->知识点->式->方程"], "equations"),
        (["x->y-> 方程 ->二次 "], "quadratics"),
        ([SKILL], "skill"),
    ],
)
def test_the_longest_beginning_after_the_roots_two_parts_decides(routes, expected):
    subtopic = SMALL.subtopic(routes)
    assert subtopic is not None
    assert subtopic.id == expected


@pytest.mark.parametrize(
    "route", [UNKNOWN, "方程->二次", "x->y", "", "x->y->方程组", "x->y->式", "x->y->天文->方程"]
)
def test_a_route_outside_all_rules_has_no_subtopic(route):
    assert SMALL.rule(route) is None
    assert SMALL.subtopic([route]) is None


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([QUADRATIC, EQUATION], "quadratics"),
        ([EQUATION, QUADRATIC], "equations"),
        ([SKILL, EQUATION, QUADRATIC], "equations"),
        ([UNKNOWN, QUADRATIC], "quadratics"),
        ([UNKNOWN, SKILL], "skill"),
    ],
)
def test_of_several_routes_the_first_that_is_not_broad_decides(routes, expected):
    subtopic = SMALL.subtopic(routes)
    assert subtopic is not None
    assert subtopic.id == expected


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (
            "课内体系->知识点->方程与不等式->一元一次方程->a leaf of another edition",
            "linear_equations",
        ),
        ("Overseas Competition->Knowledge Point->Calculation Modules->Fractions", "fractions"),
        ("拓展思维->能力->运算求解", "calculation_ability"),
    ],
)
def test_the_topic_of_a_question_is_a_subtopic(tmp_path: Path, route, expected):
    assert topic(tmp_path, [route]) == expected


@pytest.mark.parametrize("routes", [None, []])
@pytest.mark.parametrize("topics", ["subtopic", "leaf"])
def test_a_question_without_a_route_has_no_topic(tmp_path: Path, routes, topics):
    assert topic(tmp_path, routes, topics=topics) == ""


def test_the_option_leaf_keeps_the_published_tag_of_the_first_route(tmp_path: Path):
    assert topic(tmp_path, ["a->b-> 天文 ", EQUATION], topics="leaf") == "天文"


def test_a_route_the_taxonomy_does_not_know_is_a_fault_that_says_what_to_do(tmp_path: Path):
    with pytest.raises(ExampleFault, match=r"天文.*topics: leaf") as caught:
        topic(tmp_path, [UNKNOWN])
    assert caught.value.cause == "unknown_topic"


def test_every_published_route_has_a_subtopic(published):
    routes = {route for routes in published for route in routes}
    assert len(published) == 10_000
    assert len(routes) > 2_000
    assert [route for route in routes if k12_taxonomy().rule(route) is None] == []


def test_every_rule_is_the_one_that_decides_some_published_route(published):
    used = {k12_taxonomy().rule(route) for routes in published for route in routes}
    assert set(k12_taxonomy().rules) - used == set()


def test_every_subtopic_has_published_questions_and_none_holds_most(published):
    counts = Counter(k12_taxonomy().subtopic(routes) for routes in published if routes)
    assert set(counts) == set(k12_taxonomy().subtopics.values())
    assert max(counts.values()) < 0.11 * sum(counts.values())
