"""TAL-SCQ5K: single-choice K-12 problems in Chinese and English."""

import re
from typing import Any, Literal

from dsm_engine.data.example import (
    Block,
    Example,
    ExampleFault,
    ExampleOmitted,
    Language,
    detect_language,
)
from dsm_engine.data.sources.reader import Reader
from dsm_engine.data.sources.rows import Row, optional_text, text_field
from dsm_engine.data.sources.topics import k12_taxonomy, route_parts
from dsm_engine.recipes import Section

_CONCLUSIONS: dict[Language, str] = {
    "en": "The answer is \\boxed{{{}}}.",
    "zh": "答案是\\boxed{{{}}}。",
}
# What stands in place of an analysis where there is none, without case, markup and punctuation.
_PLACEHOLDERS = frozenset(
    (
        *("无", "暂无", "略", "此题暂无解析", "不要搜题"),
        *("答案请写在答题卡上", "答案请写在答题纸上"),
        *("na", "nil", "none", "omit", "omitted", "insertpic"),
        *"abcdefgh",
    )
)
_NOT_CONTENT = re.compile(r"\\(?:rm|text|mathrm|uline)\b|\\hspace\{0pt\}|[\W_]")


class TalScq5kOptions(Section):
    """What becomes of the published knowledge routes."""

    topics: Literal["subtopic", "leaf"] = "subtopic"
    """`subtopic`: one of the taxonomy's 76. `leaf`: the published tag at the first route's end."""


class TalScq5kReader(Reader):
    r"""`{"queId", "problem", "answer_option_list", "answer_analysis", "answer_value", ...}`.

    The options are part of the question, one a line. The answer is the first analysis, then the
    letter of the right option in `\boxed{}`. The topic comes from the knowledge routes, and is
    empty where a question has none. A row whose analysis is a placeholder such as `无` or `NA` is
    omitted: an answer without reasoning would teach what its question does not ask for.
    """

    name = "tal_scq5k"
    licence = "MIT"
    Options = TalScq5kOptions

    def parse(self, record: dict[str, Any], row: Row) -> Example:
        problem = text_field(record, "problem", "missing_question")
        options = _options(record)
        answer = text_field(record, "answer_value", "missing_answer")
        if answer not in options:
            raise ExampleFault("missing_answer", f"the answer {answer!r} is none of the options")
        question = "\n".join([problem, *(f"{key}. {text}" for key, text in options.items())])
        language = detect_language(question)
        analysis = _analysis(record)
        conclusion = _CONCLUSIONS[language].format(answer)
        return Example(
            id=f"{self.source}/{optional_text(record, 'queId') or row.digest}",
            question=question,
            blocks=(Block(kind="text", text=f"{analysis}\n{conclusion}"),),
            answer=answer,
            language=language,
            format="cot",
            source=self.source,
            topic=self._topic(record),
            licence=self.licence,
        )

    def _topic(self, record: dict[str, Any]) -> str:
        options = self.options
        assert isinstance(options, TalScq5kOptions)
        routes = _routes(record)
        if not routes:
            return ""
        if options.topics == "leaf":
            return route_parts(routes[0])[-1]
        if subtopic := k12_taxonomy().subtopic(routes):
            return subtopic.id
        raise ExampleFault(
            "unknown_topic",
            f"the taxonomy has no place for the route {routes[0]!r:.80}; the reader's option"
            " `topics: leaf` keeps published tags",
        )


def _options(record: dict[str, Any]) -> dict[str, str]:
    try:
        pairs = [(o["aoVal"], o["content"].strip()) for (o,) in record["answer_option_list"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExampleFault("bad_value", "'answer_option_list' is not as published") from error
    return dict(pairs)


def _analysis(record: dict[str, Any]) -> str:
    for analysis in record.get("answer_analysis") or []:
        if not isinstance(analysis, str):
            raise ExampleFault("bad_value", "'answer_analysis' is not a list of texts")
        content = _NOT_CONTENT.sub("", analysis).casefold()
        if content and content not in _PLACEHOLDERS:
            return analysis.strip()
    raise ExampleOmitted("no_solution", "the publisher gives no analysis")


def _routes(record: dict[str, Any]) -> list[str]:
    routes = record.get("knowledge_point_routes") or []
    if not isinstance(routes, list) or not all(isinstance(route, str) for route in routes):
        raise ExampleFault("bad_value", "'knowledge_point_routes' is not a list of texts")
    return routes
