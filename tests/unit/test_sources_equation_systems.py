"""Systems of equations, solved in fractions, and the SymPy programs made of them."""

import contextlib
import io
import subprocess
import sys
import time
from fractions import Fraction

import pytest

from dsm_engine.data.sources.equation_systems import NotSolved, solve_system
from dsm_engine.data.sources.equations import BadEquation, parse_expression
from dsm_engine.data.sources.polynomials import RationalFunction, Unsolvable, solve_polynomials


def run(program: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    return printed.getvalue().removesuffix("\n")


def polynomial(text: str):
    return RationalFunction.of(parse_expression(text, str).value).numerator


@pytest.mark.parametrize(
    ("expressions", "unknowns", "solutions"),
    [
        (["3*x-12"], "x", [{"x": 4}]),
        (["x+y-10", "x-y-4"], "xy", [{"x": 7, "y": 3}]),
        (["x+y-10", "2*x+2*y-20", "x-3*y"], "xy", [{"x": Fraction(15, 2), "y": Fraction(5, 2)}]),
        (["x+y-10", "x+y-11"], "xy", []),
        (["x-1", "0*x+5"], "x", []),
        (["x^2-9"], "x", [{"x": -3}, {"x": 3}]),
        (["x^2+6*x+9"], "x", [{"x": -3}]),
        (["x^2+1"], "x", []),
        (["4*x^2-9/25"], "x", [{"x": Fraction(-3, 10)}, {"x": Fraction(3, 10)}]),
        (["x+y-7", "x*y-12"], "xy", [{"x": 3, "y": 4}, {"x": 4, "y": 3}]),
        (["x-y*z", "y-2", "z-3"], "xyz", [{"x": 6, "y": 2, "z": 3}]),
        (["(x+2)*(y-1)-x*y", "x+y-8"], "xy", [{"x": Fraction(14, 3), "y": Fraction(10, 3)}]),
    ],
)
def test_all_solutions_of_a_system_are_found(expressions, unknowns, solutions):
    found = solve_polynomials([polynomial(text) for text in expressions], unknowns)
    assert len(found) == len(solutions)
    assert all(solution in found for solution in solutions)


@pytest.mark.parametrize(
    ("expressions", "unknowns", "message"),
    [
        (["x+y-10"], "xy", "not determined"),
        (["x+y-10", "2*x+2*y-20"], "xy", "not determined"),
        (["x^2-2"], "x", "irrational"),
        (["x^3-8"], "x", "degree above 2"),
        (["x*y-6", "x^2+y^2-13"], "xy", "can be expressed"),
    ],
)
def test_a_system_that_is_not_solved_says_why(expressions, unknowns, message):
    with pytest.raises(Unsolvable, match=message):
        solve_polynomials([polynomial(text) for text in expressions], unknowns)


@pytest.mark.parametrize(
    ("equations", "answers", "targets", "printed"),
    [
        (["x=44*20"], ["880"], [], "880"),
        (["(27.0-6.0)/7.0=X"], ["3"], [], "3"),
        (["3*m-2=m+8"], ["5"], [], "5"),
        (["0.05*m=0.25"], ["5"], [], "5"),
        (["7*m=15"], ["2.142857"], [], "2.142857"),
        (["2*m=15"], ["7.5"], [], "7.5"),
        (["2*m-n=1", "m+n=-64"], ["-21", "-43"], [], "-21, -43"),
        (["2*m-n=1", "m+n=-64"], ["-43", "-21"], [], "-43, -21"),
        (["2*m-n=1", "m+n=-64"], ["-43"], [], "-43"),
        (["m+n=5", "m-n=0"], ["2.5", "2.5"], [], "2.5, 2.5"),
        (["x+(x+1)=-223"], ["-111"], ["x+1"], "-111"),
        (["8*x=1"], ["112.5%"], ["x+1"], "112.5%"),
        (["3(2k-1)=(2k+1)+(2k+3)-1"], ["5", "7", "9"], ["2*k-1", "2*k+1", "2*k+3"], "5, 7, 9"),
        (["x=y-7", "(x-4)/(y+1)=1/3"], ["10", "17"], ["x", "y"], "10, 17"),
        (["x+y=20", "x/y=4"], ["0.25"], ["y/x"], "0.25"),
        (["3000*(1+x)^2=4320"], ["0.2"], [], "0.2"),
        (["x^2=9"], ["-3", "3"], [], "-3, 3"),
        (["x^2=9"], ["3", "-3"], [], "3, -3"),
        (["x*(13-2*x)=15"], ["5"], [], "5"),
        (["x*(13-2*x)=15"], ["1.5"], [], "1.5"),
        (["x-y=2", "x^2+y^2=74"], ["7", "5"], [], "7, 5"),
        (["x=1+2*y", "xy=21"], ["7", "3"], [], "7, 3"),
        (["x^2=4*y^2", "x=1+2*y"], ["0.5"], ["x"], "0.5"),
        (["10/x+10/x=5"], ["4"], [], "4"),
        (["(x*x-x)/(x-1)=3"], ["3"], [], "3"),
    ],
)
def test_the_program_prints_the_answers_in_their_order_and_form(
    equations, answers, targets, printed
):
    solution = solve_system(equations, answers, targets)
    assert solution is not None
    assert solution.printed == printed
    assert run(solution.program) == printed


def test_a_program_says_what_a_person_would_write():
    solution = solve_system(["0.5*m+5.0*n=12.00", "m-n=2.0"], ["4", "2"])
    assert solution is not None
    assert solution.program.splitlines() == [
        "from sympy import Eq, Rational, solve, symbols",
        "",
        'm, n = symbols("m n")',
        "equations = [",
        '    Eq(Rational("0.5") * m + 5 * n, 12),',
        "    Eq(m - n, 2),",
        "]",
        "solution = solve(equations, [m, n], dict=True)[0]",
        'print(solution[m], solution[n], sep=", ")',
    ]


@pytest.mark.parametrize(
    ("equations", "answers"),
    [
        (["x=44*20"], ["881"]),
        (["3*m=16"], ["5"]),
        (["3*m=16"], ["5.34"]),
        (["2*m-n=1", "m+n=-64"], ["-21", "-21"]),
        (["2*m-n=1", "m+n=-64"], ["-21", "-43", "0"]),
        (["x^2=9"], ["4"]),
        (["x^2=9"], ["3", "3"]),
        (["x^2=9"], ["3", "-3", "3"]),
        (["(x-1)/(x-1)=x"], ["1"]),
    ],
)
def test_other_values_are_a_mismatch(equations, answers):
    assert solve_system(equations, answers) is None


@pytest.mark.parametrize(
    ("equations", "answers"),
    [
        (["x+y=7", "x*y=12"], ["3", "4"]),
        (["x-y=5", "20*y+1=x^2"], ["9", "4"]),
        (["x+y=5"], ["5"]),
        (["x^2=2"], ["1.414"]),
        (["x*x*x=27"], ["3"]),
    ],
)
def test_an_answer_that_is_not_the_only_one_known_is_refused(equations, answers):
    with pytest.raises(NotSolved):
        solve_system(equations, answers)


@pytest.mark.parametrize(
    "equations",
    [
        *([], [""], ["="], ["x="], ["=x"], ["x"], ["1=1"], ["x=x"], ["x=1=1"], ["3*x=1", ""]),
        *(["x/0=1"], ["x/(x-x)=1"], ["(x=1"], ["x+(2=1)"], ["x+1)=2"], ["x==2"], ["x+=2"]),
        *(["9**9**9*x=1"], ["x^9^9^9=1"], ["(x+y)^64=1"], ["x^(1/2)=3"], ["2^x=8"], ["x^-1=2"]),
        *(["lambda*x=1"], ["__import__('os')=x"], ["sqrt(x)=2"], ["x;y=1"], ["x=1e5+x"]),
        *(["x=inf-x"], ["x+nan=1"], ["x=∞"], ["二*x=1"], ["x\x00=1+x"], ["x_1=2+x_1"]),
        *(["(2)(3)=x+1"], ["x2=4"], ["2 3*x=6"], ["x:=2"], ["x>2"], ["x+1=2"] * 9),
        *(["(" * 99 + "x" + ")" * 99 + "=1+x"], ["x+" * 5000 + "1=2"], ["x*" * 150 + "1=2"]),
        [f"{'9' * 101}*x=1"],
        ["((9^60*x)^8)^8=1"],
    ],
)  # fmt: skip
def test_what_is_no_system_is_refused(equations):
    with pytest.raises(BadEquation):
        solve_system(equations, ["1"])


@pytest.mark.parametrize(
    "answers", [[], ["1"] * 17, ["nan"], ["inf"], [""], ["1e300"], ["1/0"], ["x"], ["9" * 401]]
)
def test_what_is_no_answer_is_refused(answers):
    with pytest.raises(BadEquation):
        solve_system(["3*x=3*1"], answers)


@pytest.mark.parametrize("targets", [["y"], ["x+"], ["1/(x-1)"], ["x" * 401], ["x"] * 17])
def test_what_cannot_be_asked_for_is_refused(targets):
    with pytest.raises(BadEquation):
        solve_system(["3*x=3*1"], ["2"], targets)


def test_equations_of_the_largest_size_take_no_time():
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    sums = "+".join(f"{index}*{letter}" for index, letter in enumerate(letters, 1))
    factors = "".join(f"({letter}+{index})" for index, letter in enumerate(letters, 1))
    begin = time.perf_counter()
    for text in (f"{sums}=1", f"{factors}=1", f"({sums[:150]}*0)^8=x", "1/" * 190 + "x=1"):
        with contextlib.suppress(BadEquation):
            solve_system([text] * 8, ["2"])
    assert time.perf_counter() - begin < 2


def test_sympy_is_not_imported():
    code = (
        "import sys\n"
        "from dsm_engine.data.sources.equation_systems import solve_system\n"
        "solve_system(['x*(13-2*x)=15'], ['5'])\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
