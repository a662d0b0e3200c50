"""The taxonomy of school mathematics: 76 sub-topics, and where published knowledge routes belong.

A route is a path in a publisher's tree of knowledge points, from the root to a leaf, such as
`课内体系->知识点->方程与不等式->一元一次方程`. The taxonomy and its routes are `k12_topics.yaml`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dsm_engine.recipes import read_yaml

TOPICS_PATH = Path(__file__).parent / "k12_topics.yaml"
_ARROW = "->"
_NUM_ROOT_PARTS = 2  # say whose tree it is and that it is one of knowledge, methods or abilities


@dataclass(frozen=True, kw_only=True, slots=True)
class Subtopic:
    """A topic that fills some lessons, such as linear equations."""

    id: str
    """Stable: what an example's `topic` holds."""
    area: str
    english: str
    chinese: str
    broad: bool
    """Whether its routes name a way of thinking, an ability or an area and nothing narrower."""


class Taxonomy:
    """Sub-topics by id, and the sub-topic of a route."""

    def __init__(self, areas: Mapping[str, Any]) -> None:
        """`areas` is laid out as in `k12_topics.yaml`."""
        self.area_names: dict[str, tuple[str, str]] = {}
        """The English and the Chinese name of each area."""
        self.subtopics: dict[str, Subtopic] = {}
        self.rules: dict[tuple[str, ...], Subtopic] = {}
        """Beginnings of routes, without the root's parts."""
        for area, contents in areas.items():
            self.area_names[area] = contents["english"], contents["chinese"]
            for id, values in contents["subtopics"].items():
                subtopic = Subtopic(
                    id=id,
                    area=area,
                    english=values["english"],
                    chinese=values["chinese"],
                    broad=values.get("broad", False),
                )
                self.subtopics[id] = subtopic
                self.rules |= dict.fromkeys(map(route_parts, values["routes"]), subtopic)

    def rule(self, route: str) -> tuple[str, ...] | None:
        """The longest of the rules that the route begins with; None where there is none."""
        parts = route_parts(route)[_NUM_ROOT_PARTS:]
        beginnings = (parts[:length] for length in range(len(parts), 0, -1))
        return next((beginning for beginning in beginnings if beginning in self.rules), None)

    def subtopic(self, routes: Sequence[str]) -> Subtopic | None:
        """The sub-topic of a question; None where no rule covers any of its routes.

        It is that of the first route with a sub-topic that is not broad, and, where there is none,
        that of the first route with any.
        """
        rules = filter(None, map(self.rule, routes))
        found = [self.rules[rule] for rule in rules]
        return min(found, key=lambda subtopic: subtopic.broad, default=None)


def route_parts(route: str) -> tuple[str, ...]:
    """The names along a route, from the root."""
    return tuple(part.strip() for part in route.split(_ARROW))


@cache
def k12_taxonomy() -> Taxonomy:
    """The taxonomy of `k12_topics.yaml`, read once."""
    return Taxonomy(read_yaml(TOPICS_PATH))
