"""Exact arithmetic, algebra and matrices, by sympy; matrices of decimals by numpy.

An expression is read as Python's syntax tree and built node by node out of what is listed here, so
nothing in it is ever evaluated as code. Work without end is refused where it can be foreseen
beforehand; the rest ends with the tool's time.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Annotated, Any

import msgspec
import numpy as np
import sympy
from msgspec import Meta
from sympy.polys.polyerrors import BasePolynomialError

from aios.agents.runtime.tool import tool
from aios.syscalls.errors import ToolFailed

MAX_BITS = 200_000  # of a number
MAX_DIGIT_BITS = 13_000  # bits of one that is shown digit by digit
MAX_ARGUMENT = 10_000  # the largest argument of what grows quickly: factorials, exp, powers of sums
MAX_FACTORED_BITS = 100  # bits of a number that is to be factored
MAX_SIDE = 64  # of a matrix
MAX_EXACT_SIDE = 8  # of one that is calculated with exactly
MAX_ANSWER_CHARS = 20_000
UNSOLVED = (  # what sympy and numpy raise where something makes no sense to them
    ArithmeticError, AttributeError, LookupError, TypeError, ValueError, NotImplementedError,
    RecursionError, BasePolynomialError,
)  # fmt: skip


class Calculation(msgspec.Struct):
    result: str
    decimal: str | None  # what it comes to, where that is a number and not an integer
    exact: bool  # nothing was rounded on the way to the result


@tool(timeout=20)
def calculate(
    expression: Annotated[
        str,
        Meta(
            max_length=2000, description='as in "2/3 + sqrt(2)", "x**2 = 4", "det([[1,2],[3,4]])"'
        ),
    ],
    digits: Annotated[int, Meta(ge=1, le=1000, description="of the decimal value")] = 15,
) -> Calculation:
    """Calculate exactly: numbers, algebra (solve, diff, integrate, limit, simplify, factor),
    matrices as lists of rows, statistics of lists. An equation with one unknown is solved for
    it."""
    try:
        value = _value(_parsed(expression))
        if isinstance(value, sympy.Eq) and len(value.free_symbols) == 1:
            value = sympy.solve(value)
        return _answer(value, digits)
    except UNSOLVED as error:
        reason = str(error)[:500] or type(error).__name__
        raise ToolFailed(f"{expression[:100]}: {reason}") from error


def _parsed(expression: str) -> ast.expr:
    text = re.sub(r"(?<![=<>!])=(?!=)", "==", expression.strip().replace("^", "**"))
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        hint = "write 2*x for 2x, sqrt(2), and numbers without commas"
        raise ToolFailed(f"{expression[:100]!r} is no expression: {error}", hint) from error
    for node in ast.walk(body):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            node.value = _decimal(ast.get_source_segment(text, node) or "")
    return body


def _decimal(text: str) -> Any:
    """Read a decimal exactly: 0.1 is a tenth."""
    power = text.lower().partition("e")[2]
    if power and abs(int(power)) > MAX_ARGUMENT:
        raise ToolFailed(f"{text[:100]}: the exponent there is at most {MAX_ARGUMENT}")
    return sympy.Rational(text.replace("_", ""))


def _value(node: ast.AST) -> Any:
    match node:
        case ast.Constant(value=bool() as truth):
            return sympy.sympify(truth)
        case ast.Constant(value=int() | sympy.Rational() as number):
            return sympy.Rational(number)
        case ast.Name(id=name) if name not in FUNCTIONS:
            return CONSTANTS[name] if name in CONSTANTS else sympy.Symbol(name)
        case ast.List(elts=items):
            return [_value(item) for item in items]
    return _valued(_combined(node), node)


def _valued(value: Any, node: ast.AST) -> Any:
    """Refuse a result without a value: sympy goes on with those, and takes 1/(1/0) for 0."""
    for item in _leaves(_plain(value)):
        if item.has(sympy.nan, sympy.zoo):
            text = ast.unparse(node)[:100]
            raise ToolFailed(f"{text} has no value: it divides by zero, or is infinite")
    return value


def _combined(node: ast.AST) -> Any:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_operand(_value(operand))
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            return _chain(node)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in RELATIONS:
            return RELATIONS[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            _check_count(name, len(args))
            given = [_value(arg) for arg in args]
            return FUNCTIONS[name](*(given if name == "solve" else map(_numbers, given)))
        case ast.Call(func=ast.Name(id=name)):
            raise ToolFailed(f"there is no function {name}", "there are: " + ", ".join(FUNCTIONS))
    raise ToolFailed(
        f"{ast.unparse(node)[:100]!r} has no place in an expression",
        "write numbers without commas, names, + - * / // % **, comparisons, lists, function calls",
    )


def _check_count(name: str, count: int) -> None:
    counts = COUNTS.get(name, ONE)
    if count not in counts:
        takes = "one or more" if counts is SOME else " or ".join(map(str, counts))
        raise ToolFailed(f"{name} takes {takes} arguments, and has {count}")


def _chain(node: ast.BinOp) -> Any:
    """Compute a chain of operators of any length: each is a level of the tree."""
    first: ast.expr = node
    rest: list[tuple[ast.operator, ast.expr]] = []
    while isinstance(first, ast.BinOp) and type(first.op) in OPERATORS:
        rest.append((first.op, first.right))
        first = first.left
    value = _operand(_value(first))
    for op, right in reversed(rest):
        value = _valued(OPERATORS[type(op)](value, _operand(_value(right))), node)
    return value


def _operand(value: Any) -> Any:
    """Turn a list in a calculation into a matrix or a column."""
    return _matrix(value) if isinstance(value, list) else _numbers(value)


def _numbers(value: Any) -> Any:
    """Refuse equations and truth values within a value."""
    for item in _leaves(_plain(value)):
        if not isinstance(item, sympy.Expr):
            raise ToolFailed(f"{str(item)[:100]} is no number to calculate with")
    return value


def _matrix(value: Any) -> sympy.Matrix:
    if isinstance(value, sympy.MatrixBase):
        return value
    if not isinstance(value, list):
        value = [[value]]
    rows = [row if isinstance(row, list) else [row] for row in value]
    if not all(isinstance(item, sympy.Expr) for row in rows for item in row):
        hint = "write it as a list of rows: [[1,2],[3,4]]"
        raise ToolFailed(f"{str(value)[:100]} is not a matrix", hint)
    if any(len(part) > MAX_SIDE for part in (rows, *rows)):
        raise ToolFailed(f"a matrix has at most {MAX_SIDE} rows and columns")
    return sympy.Matrix(rows)


def _answer(value: Any, digits: int) -> Calculation:
    plain = _plain(value)
    rounded = _each(plain, lambda item: _rounded(item, digits))
    shown = _each(plain, lambda item: _rounded(item, digits) if _long(item) else item)
    exact = not any(item.has(sympy.Float) for item in _leaves(shown))
    inner = [item for item in _leaves(plain) if item.is_number and not item.is_Integer]
    texts = (sympy.sstr(what, full_prec=False) for what in (shown, rounded))
    result, decimal = (text[:MAX_ANSWER_CHARS] for text in texts)
    return Calculation(result, decimal if exact and inner and decimal != result else None, exact)


def _plain(value: Any) -> Any:
    """Turn sympy's values into lists and maps."""
    if isinstance(value, sympy.MatrixBase):
        return value.tolist()
    if isinstance(value, list | tuple | set | sympy.Tuple | sympy.FiniteSet):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {sympy.sympify(key): _plain(item) for key, item in value.items()}
    return sympy.sympify(value)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    return change(value)


def _leaves(value: Any) -> list[Any]:
    found: list[Any] = []
    _each(value, found.append)
    return found


def _rounded(item: Any, digits: int) -> Any:
    return (
        item.evalf(digits) if item.is_number and not (item.is_Integer and not _long(item)) else item
    )


def _long(item: Any) -> bool:
    return bool(item.is_Rational and _bits(item) > MAX_DIGIT_BITS)


# --- what could take for ever ---------------------------------------------------------------------


def _bits(number: Any) -> int:
    return max(int(number.p).bit_length(), int(number.q).bit_length())


def _bounded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Have a function refuse arguments larger than MAX_ARGUMENT."""

    def checked(*args: Any) -> Any:
        for value in args:
            if getattr(value, "is_number", False) and not abs(value) <= MAX_ARGUMENT:
                raise ToolFailed(f"{name} takes numbers up to {MAX_ARGUMENT} here")
        return function(*args)

    return checked


def _power(base: Any, exponent: Any) -> Any:
    if not isinstance(base, sympy.MatrixBase) and base.is_Rational and exponent.is_number:
        size = _bits(base) if base not in (0, 1, -1) else 0
        if not size * abs(exponent) <= MAX_BITS:
            raise ToolFailed(f"that power would have more than {MAX_BITS} binary digits")
    elif exponent.is_number and not abs(exponent) <= MAX_ARGUMENT:
        raise ToolFailed(f"the exponent there is at most {MAX_ARGUMENT}")
    return base**exponent


def _remainder_of_power(base: Any, exponent: Any, modulus: Any = None) -> Any:
    if modulus is None:
        return _power(base, exponent)
    return sympy.Integer(pow(_integer(base), _integer(exponent), _integer(modulus)))


def _integer(value: Any, bits: int = MAX_BITS) -> int:
    if not getattr(value, "is_Integer", False) or _bits(value) > bits:
        raise ToolFailed(f"{str(value)[:100]} is not an integer of at most {bits} bits")
    return int(value)


# --- functions ------------------------------------------------------------------------------------


def _over_range(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Make a function of sum(term, k, first, last), or sum(list)."""

    def total(*args: Any) -> Any:
        if len(args) == 1:
            return (sympy.Add if name == "sum" else sympy.Mul)(*args[0])
        term, variable, first, last = args
        if name == "product" and (last - first).is_number and not last - first <= MAX_ARGUMENT:
            raise ToolFailed(f"a product has at most {MAX_ARGUMENT} factors here")
        return function(term, (variable, first, last))

    return total


def _integral(term: Any, variable: Any, *bounds: Any) -> Any:
    return sympy.integrate(term, (variable, *bounds) if bounds else variable)


def _derivative(term: Any, variable: Any, times: Any = sympy.S.One) -> Any:
    return sympy.diff(term, variable, _integer(times, 6))


def _round(number: Any, places: Any = sympy.S.Zero) -> Any:
    return sympy.Rational(str(number.round(_integer(places, 12))))


def _items(least: int, *given: Any) -> list[Any]:
    """Return the numbers of a list, or those given one by one."""
    items = _leaves(list(given))
    if len(items) < least:
        raise ToolFailed(f"it takes {least} or more numbers, and has {len(items)}")
    return items


def _log(number: Any, base: Any = sympy.E) -> Any:
    if base in (0, 1) or base.is_infinite:
        raise ToolFailed(f"there is no logarithm to the base {base}")
    return sympy.log(number, base)


def _limit(term: Any, variable: Any, point: Any) -> Any:
    """Return the limit, if it is the same from both sides."""
    return sympy.limit(term, variable, point, "+-")


def _mean(given: Any) -> Any:
    items = _items(1, given)
    return sympy.Add(*items) / len(items)


def _median(given: Any) -> Any:
    items = sorted(_items(1, given))
    return _mean(items[(len(items) - 1) // 2 : len(items) // 2 + 1])


def _variance(given: Any) -> Any:
    """Return the variance of a sample: over n - 1."""
    items = _items(2, given)
    mean = _mean(items)
    return sympy.Add(*((item - mean) ** 2 for item in items)) / (len(items) - 1)


def _on_matrix(exact: Callable[..., Any], quick: Callable[..., Any] | None) -> Callable[..., Any]:
    """Have a function compute small matrices exactly, others with numpy's decimals."""

    def calculated(*given: Any) -> Any:
        matrices = [_matrix(value) for value in given]
        if quick is None or max(matrices[0].shape) <= MAX_EXACT_SIDE:
            return exact(*matrices)
        found = quick(*(np.array(matrix.tolist(), dtype=complex) for matrix in matrices))
        items = np.real_if_close(found).tolist()
        return _each(items, sympy.sympify) if isinstance(items, list) else sympy.sympify(items)

    return calculated


CONSTANTS = {
    "pi": sympy.pi, "e": sympy.E, "E": sympy.E, "i": sympy.I, "I": sympy.I, "oo": sympy.oo,
    "inf": sympy.oo,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: _power,
}  # fmt: skip
RELATIONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: sympy.Eq, ast.NotEq: sympy.Ne, ast.Lt: sympy.Lt, ast.LtE: sympy.Le, ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(sympy, name) for name in (
        "sqrt", "cbrt", "root", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "tanh",
        "asinh", "acosh", "atanh", "floor", "ceiling", "sign", "re", "im",
        "conjugate", "arg", "simplify", "expand", "factor", "apart", "together", "cancel", "solve",
        "isprime",
    )
} | {
    name: _bounded(getattr(sympy, name), name)
    for name in ("exp", "sinh", "cosh", "factorial", "binomial", "gamma", "fibonacci")
} | {
    "log": _log, "ln": sympy.log, "limit": _limit, "abs": sympy.Abs, "ceil": sympy.ceiling,
    "mod": operator.mod,
    "log2": lambda x: sympy.log(x, 2), "log10": lambda x: sympy.log(x, 10),
    "gcd": lambda *given: reduce(sympy.gcd, _items(1, *given)),
    "lcm": lambda *given: reduce(sympy.lcm, _items(1, *given)),
    "min": lambda *given: sympy.Min(*_items(1, *given)),
    "max": lambda *given: sympy.Max(*_items(1, *given)),
    "pow": _remainder_of_power, "round": _round,
    "factorint": lambda n: sympy.factorint(_integer(n, MAX_FACTORED_BITS)),
    "N": lambda x, *n: sympy.N(x, *(_integer(digits, 10) for digits in n)),
    "diff": _derivative, "integrate": _integral,
    "sum": _over_range(sympy.summation, "sum"), "product": _over_range(sympy.product, "product"),
    "mean": _mean, "median": _median, "variance": _variance,
    "stdev": lambda items: sympy.sqrt(_variance(items)),
    "det": _on_matrix(lambda m: m.det(), np.linalg.det),
    "inv": _on_matrix(lambda m: m.inv(), np.linalg.inv),
    "rank": _on_matrix(lambda m: m.rank(), np.linalg.matrix_rank),
    "eigenvals": _on_matrix(lambda m: m.eigenvals(multiple=True), np.linalg.eigvals),
    "linsolve": _on_matrix(lambda a, b: a.LUsolve(b), np.linalg.solve),
    "transpose": _on_matrix(lambda m: m.T, None), "trace": _on_matrix(lambda m: m.trace(), None),
    "dot": _on_matrix(lambda a, b: a.dot(b), None),
    "cross": _on_matrix(lambda a, b: a.cross(b), None),
}  # fmt: skip
# How many arguments each takes; sympy ignores some, or takes them for something else.
ONE, SOME = (1,), range(1, 1000)
COUNTS: dict[str, Sequence[int]] = {
    **dict.fromkeys(("gcd", "lcm", "min", "max", "solve"), SOME),
    **dict.fromkeys(("atan2", "mod", "binomial", "linsolve", "dot", "cross"), (2,)),
    **dict.fromkeys(("log", "round", "N", "apart"), (1, 2)),
    **dict.fromkeys(("root", "pow", "diff"), (2, 3)),
    **dict.fromkeys(("sum", "product"), (1, 4)),
    "integrate": (2, 4),
    "limit": (3,),
}
