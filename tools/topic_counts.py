"""Prints how many questions of TAL-SCQ5K each area of the taxonomy has, as a Markdown table.

    python tools/topic_counts.py FOLDER [--subtopics]

FOLDER has the four published files, compressed or not.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from dsm_engine.data.sources.records import read_records
from dsm_engine.data.sources.rows import parse_object
from dsm_engine.data.sources.topics import Subtopic, k12_taxonomy

LANGUAGES = {"ch": "Chinese", "en": "English"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subtopics", action="store_true", help="a line for each sub-topic")
    arguments = parser.parse_args()
    counts = [count_subtopics(arguments.folder, prefix) for prefix in LANGUAGES]
    taxonomy = k12_taxonomy()
    kind = "sub-topic" if arguments.subtopics else "area"
    print(f"| {kind} | sub-topics | {' | '.join(LANGUAGES.values())} |")
    print("| --- |" + " ---: |" * (1 + len(LANGUAGES)))
    if arguments.subtopics:
        for id in taxonomy.subtopics:
            print_line(f"`{id}`", lambda subtopic, id=id: subtopic.id == id, counts)
    else:
        for area, (name, _) in taxonomy.area_names.items():
            print_line(name, lambda subtopic, area=area: subtopic.area == area, counts)
    print_line("all", lambda subtopic: True, counts)
    print_line("of them broad", lambda subtopic: subtopic.broad, counts)
    print(f"| no route | | {' | '.join(f'{count[None]:,}' for count in counts)} |")


def count_subtopics(folder: Path, prefix: str) -> Counter[Subtopic | None]:
    """Questions of the files whose names begin so, by sub-topic; None for those without a route."""
    counts: Counter[Subtopic | None] = Counter()
    for path in sorted(folder.glob(f"{prefix}_*.jsonl*")):
        for row in read_records(path):
            routes = parse_object(row)["knowledge_point_routes"]
            counts[k12_taxonomy().subtopic(routes)] += 1
    return counts


def print_line(
    name: str,
    belongs: Callable[[Subtopic], bool],
    counts: Iterable[Counter[Subtopic | None]],
) -> None:
    subtopics = list(filter(belongs, k12_taxonomy().subtopics.values()))
    sums = [sum(count[subtopic] for subtopic in subtopics) for count in counts]
    print(f"| {name} | {len(subtopics)} | {' | '.join(f'{total:,}' for total in sums)} |")


if __name__ == "__main__":
    main()
