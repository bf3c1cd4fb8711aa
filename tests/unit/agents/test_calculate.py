"""The tool calculate: exact, and not to be led astray."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipped import run

from aios.syscalls.errors import ToolFailed

ANSWERS = [
    ("2**10", "1024", None),
    ("2^10", "1024", None),
    ("0.1 + 0.2", "3/10", "0.3"),
    ("1.00000000000000000001 - 1", f"1/{10**20}", "1.0e-20"),
    ("123456789012345678901.5 * 2", "246913578024691357803", None),
    ("1_000. + .5e-1", "20001/20", "1000.05"),
    ("1e400 * 1E-400", "1", None),
    ("2/3 + sqrt(2)", "2/3 + sqrt(2)", "2.08088022903976"),
    ("-7 // 2", "-4", None),
    ("10**10000 % 7", "4", None),
    ("pow(2, 10**100, 7)", "2", None),
    ("x**2 = 4", "[-2, 2]", None),
    ("x^2 + 1 = 0", "[-I, I]", "[-1.0*I, 1.0*I]"),
    ("solve([x + y = 3, x - y = 1], [x, y])", "{x: 2, y: 1}", None),
    ("integrate(x**2, x, 0, 1)", "1/3", "0.333333333333333"),
    ("diff(x**3, x, 2)", "6*x", None),
    ("limit(sin(x)/x, x, 0)", "1", None),
    ("sum(1/k**2, k, 1, oo)", "pi**2/6", "1.64493406684823"),
    ("inv([[1,2],[3,4]])", "[[-2, 1], [3/2, -1/2]]", "[[-2, 1], [1.5, -0.5]]"),
    ("[[1,2],[3,4]] * [1,1]", "[[3], [7]]", None),
    ("eigenvals([[2,0],[0,3]])", "[2, 3]", None),
    ("median([3,1,2,10])", "5/2", "2.5"),
    ("median([[1,2],[3,4]])", "5/2", "2.5"),
    ("median([[1,2],[3,4]])", "5/2", "2.5"),
    ("stdev([1,2,3,4])", "sqrt(15)/3", "1.29099444873581"),
    ("round(2/3, 2)", "67/100", "0.67"),
    ("factorint(360)", "{2: 3, 3: 2, 5: 1}", None),
    ("3 > 2", "True", None),
    ("isprime(2**127 - 1)", "True", None),
    ("gcd(12, 18, 8)", "2", None),
    ("gcd([12, 18, 8])", "2", None),
    ("lcm(2, 3, 4)", "12", None),
    ("min([3, 1], 0)", "0", None),
    ("max(3, [1, [7]])", "7", None),
    ("log(8, 2)", "3", None),
    ("log(8)", "log(8)", "2.07944154167984"),
    ("limit(1/x**2, x, 0)", "oo", None),
    ("limit((1 + 1/n)**n, n, oo)", "E", "2.71828182845905"),
    ("root(27, 3)", "3", None),
    ("sum([])", "0", None),
    ("+".join(["1"] * 450), "450", None),
    ("+".join(["x"] * 450), "450*x", None),
    ("1-2*3-" + "-".join(["1"] * 700), "-705", None),
]


@pytest.mark.parametrize(("expression", "result", "decimal"), ANSWERS)
def test_calculate_is_exact(expression: str, result: str, decimal: str | None) -> None:
    found = run("calculate", expression=expression)
    assert found == {"result": result, "decimal": decimal, "exact": True}


def test_calculate_says_where_it_rounds() -> None:
    assert run("calculate", expression="N(pi, 30)")["exact"] is False
    assert (
        run("calculate", expression="pi", digits=30)["decimal"] == "3.14159265358979323846264338328"
    )
    long = run("calculate", expression="2**20000")
    assert long == {"result": "3.98027684033797e+6020", "decimal": None, "exact": False}


def test_large_matrices_are_numpy_s() -> None:
    rows = ",".join(str([int(i == j) * 2 for j in range(12)]) for i in range(12))
    found = run("calculate", expression=f"det([{rows}])")
    assert float(found["result"]) == pytest.approx(4096)
    assert found["exact"] is False


NUMBERS = st.integers(0, 99).map(str)
SUMS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda t: f"({' '.join(t)})"
    ),
    max_leaves=8,
)


@given(SUMS)
def test_calculate_agrees_with_fractions(text: str) -> None:
    try:
        expected = eval(re.sub(r"\d+", r"Fraction(\g<0>)", text))
    except ZeroDivisionError:
        with pytest.raises(ToolFailed):
            run("calculate", expression=text)
    else:
        assert Fraction(run("calculate", expression=text)["result"]) == expected


REFUSED = [
    ("cbrt(27, 3)", "cbrt takes 1 arguments, and has 2"),
    ("sqrt(4, 0)", "sqrt takes 1"),
    ("N(1)(2)", "has no place"),
    ("rank([[1]], 5)", "rank takes 1"),
    ("integrate(x, x, 0)", "integrate takes 2 or 4"),
    ("limit(1/x, x, 0)", "limit(1 / x, x, 0) has no value"),
    ("limit(abs(x)/x, x, 0)", "left hand limit"),
    ("log(8, 0)", "no logarithm to the base 0"),
    ("log(8, 1)", "no logarithm to the base 1"),
    ("log(8, oo)", "no logarithm to the base oo"),
    ("stdev([])", "takes 2 or more numbers, and has"),
    ("variance([5])", "takes 2 or more numbers, and has"),
    ("mean([])", "takes 1 or more numbers, and has 0"),
    ("median([])", "takes 1 or more numbers, and has 0"),
    ("min([])", "takes 1 or more numbers, and has 0"),
    ("gcd()", "gcd takes one or more"),
    ("9**9**9", "binary digits"),
    ("2**(10**9/3)", "binary digits"),
    ("0.5**(10**9)", "binary digits"),
    ("sqrt(2)**(10**9)", "at most 10000"),
    ("E**(E**(E**10))", "at most 10000"),
    ("(x + y)**20000", "at most 10000"),
    ("factorial(10**9)", "up to 10000"),
    ("factorial(factorial(10))", "up to 10000"),
    ("exp(exp(exp(10)))", "up to 10000"),
    ("product(k, k, 1, 10**9)", "at most 10000 factors"),
    ("factorint(10**60 + 7)", "100 bits"),
    ("N(pi, 10**9)", "10 bits"),
    ("diff(x, x, 10**9)", "6 bits"),
    ("det([" + ",".join(["[1]"] * 65) + "])", "at most 64 rows"),
    ("x**(10**9) % y", "at most 10000"),
    ("True + 1", "True is no number"),
    ("sin(x < 1)", "x < 1 is no number"),
    ("gcd([], [])", "takes 1 or more numbers"),
    ("[[[1]]] * 2", "is not a matrix"),
    ("det([True])", "True is no number"),
    ("integrate(x, [])", "out of range"),
    ("1/0", "divides by zero"),
    ("1/(1/0)", "1 / 0 has no value"),
    ("1//0", "by zero"),
    ("log(0) * 0", "log(0) has no value"),
    ("det([[1,2],[3]])", "mismatched"),
    ("[[1]] + 1", "[[1]] + 1"),
    ("1e10001", "at most 10000"),
    ("2x", "write 2*x for 2x"),
    ("1,000", "without commas"),
    ("", "is no expression"),
    ("(" * 300 + ")" * 300, "is no expression"),
    ("-" * 1500 + "1", "recursion"),
    ("__import__('os').system('id')", "has no place"),
    ("__import__(1)", "there is no function __import__"),
    ("eval(1)", "there is no function eval"),
    ("x.__class__", "has no place"),
    ("().__class__.__bases__", "has no place"),
    ("sqrt.__globals__", "has no place"),
    ("[y for y in [1]]", "has no place"),
    ("(lambda: 1)()", "has no place"),
    ("f'{x}'", "has no place"),
    ("'os'", "has no place"),
]


@pytest.mark.parametrize(("expression", "reason"), REFUSED)
def test_calculate_refuses_what_is_too_much_or_no_expression(expression: str, reason: str) -> None:
    with pytest.raises(ToolFailed) as caught:
        run("calculate", expression=expression)
    assert reason in str(caught.value)


@given(st.text("0123456789+-*/^%=<>()[],. xe_'\\\"", max_size=12))
def test_calculate_answers_or_refuses_any_text(text: str) -> None:
    try:
        run("calculate", expression=text)
    except ToolFailed as error:
        assert error.message
