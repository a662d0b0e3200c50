"""Programs in answers: where they end, what is run of them, and how a result is shown.

Three conventions. A script prints what it has to say, and stands behind the scripts before it,
whose prints are removed. The cells of a notebook share their names, and the value of a cell's last
line that is an expression is displayed. A program of thought may leave its answer in a variable
`ans` or `answer` or return it from `solution()` or `solver()`, and print nothing.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dsm_engine.sandbox import ProgramResult

_PROGRAM = re.compile(r"```python[^\n]*\n(.*?)^```(?!\w)", re.MULTILINE | re.DOTALL)
_MAX_SHOWN = 100  # characters of output a model is shown
_SHOWN_END = 50
_ANSWER_VARIABLES = ("ans", "answer")
_ANSWER_FUNCTIONS = ("solution", "solver")
# The cells' names live in a module of their own, apart from those of this program.
_NOTEBOOK = """
import ast, sys, traceback

def run_cell(source, names):
    tree = ast.parse(source, "<cell>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None:
        return
    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    if value is not None and not source.endswith(";"):
        names["_"] = value
        print(repr(value))

def last_line(error):
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__

def run_cells(cells, mark):
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    for cell in cells:
        failed = ""
        try:
            run_cell(cell, module.__dict__)
        except BaseException as error:
            failed = last_line(error)
        print(f"\\n{mark}{failed}", flush=True)

run_cells(%r, %r)
"""


def end_of_first_program(text: str) -> int | None:
    """Where the fence that closes the first program ends; None where none is closed."""
    match = _PROGRAM.search(text)
    return match.end() if match else None


def programs_in(text: str) -> list[str]:
    """The closed programs of a text, without their fences."""
    return [body.removesuffix("\n") for body in _PROGRAM.findall(text)]


def program_to_run(programs: Sequence[str]) -> str:
    """The last program behind the earlier ones, whose unindented prints are removed."""
    *earlier, last = programs
    lines = [
        line for program in earlier for line in program.split("\n") if not line.startswith("print(")
    ]
    return "\n".join([*lines, last])


def shown_result(result: ProgramResult) -> str:
    """What the model reads back: the output, shortened, or the error."""
    if result.error:
        return f"Runtime errors: {result.error}"
    output = result.stdout.strip()
    if len(output) > _MAX_SHOWN:
        output = f"{output[:_SHOWN_END]}...{output[-_SHOWN_END:]}"
    return output


def final_output(result: ProgramResult) -> str:
    """The last line a program printed: what it offers as an answer; "" where it failed."""
    lines = result.stdout.strip().splitlines()
    return lines[-1].strip() if lines and not result.error else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """What one cell of a notebook did."""

    output: str
    """What it printed, and what its last expression was displayed as."""
    error: str
    """The last line of its traceback; "" where it ended well."""


def notebook_program(cells: Sequence[str]) -> str:
    """One program that runs the cells as a notebook does; `notebook_results` reads its output.

    A cell that fails does not keep the later ones from running.
    """
    return _NOTEBOOK % ([cell.rstrip() for cell in cells], _mark(cells))


def notebook_results(cells: Sequence[str], result: ProgramResult) -> list[CellResult]:
    """What each cell did. Those that never came to their end have the whole program's error."""
    *whole, rest = re.split(rf"\n{_mark(cells)}(.*)\n", result.stdout)
    results = [
        CellResult(output=output, error=error.strip())
        for output, error in zip(whole[::2], whole[1::2], strict=True)
    ]
    error = result.error or "the output is too long"
    missing = [CellResult(output=rest, error=error)] * (len(cells) - len(results))
    return results + missing


def answering_program(program: str) -> str:
    """A program of thought that prints its answer: itself, or what it leaves behind printed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d"
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return program
    answer = _left_behind(tree)
    return program if answer is None else f"{program}\nprint({answer})"


def _left_behind(tree: ast.Module) -> str | None:
    """The expression that has the answer of a program that prints none; None where it does."""
    nodes = list(_outside_functions(tree))
    calls = {
        node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    if "print" in calls:
        return None
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for name in _ANSWER_VARIABLES:
        if name in stored:
            return name
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in _ANSWER_FUNCTIONS:
        if name in functions and name not in calls:
            return f"{name}()"
    return None


def _outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that run as the program is read from top to bottom."""
    left: list[ast.AST] = [tree]
    while left:
        for child in ast.iter_child_nodes(left.pop()):
            if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
                yield child
                left.append(child)


def _mark(cells: Sequence[str]) -> str:
    """Ends a cell's output; no cell prints it by accident, for it is made from all of them."""
    return hashlib.sha256("\0".join(cells).encode(errors="surrogatepass")).hexdigest()[:32]
