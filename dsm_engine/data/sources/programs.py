"""Programs as sources give them."""

import ast
import warnings

from dsm_engine.data.example import ExampleFault


def check_python(program: str) -> None:
    """Raises ExampleFault where the program is no Python; it is not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExampleFault("not_python", f"the program is no Python: {error}") from error
