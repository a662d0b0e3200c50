"""The arguments every recipe-driven command shares."""

import argparse


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and dotted overrides."""
    parser.add_argument("recipe", metavar="RECIPE", help="recipe, a YAML file")
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        default=[],  # argparse counts it among what is required without one
        help="values that take precedence over the recipe's",
    )
