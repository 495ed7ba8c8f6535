"""All mutants of a module: its source with one small mistake each, at places where a mistake can be told from the right code.

Most are mutmut's, whose functions of syntax trees are taken as they are. Its own way of running them is not: it copies the tree,
and knows neither constants nor decorated functions. More are made here of what it leaves: conditions that always or never hold,
halves of `and` and `or`, statements that are left out.
"""

from collections.abc import Iterator
from typing import NamedTuple

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, WhitespaceInclusivePositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_match

SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One mistake: where, what the lines were and what they are now, and the whole source with it."""

    function: str  # "Class.method" of the outermost function or method, "" outside of all
    line: int
    was: str
    now: str
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """Return the mutants in the order of the file, those of equal source once."""
    visitor = _Visitor(source)
    MetadataWrapper(cst.parse_module(source)).visit(visitor)
    return list({mutant.source: mutant for mutant in visitor.found if mutant.source != source}.values())


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (WhitespaceInclusivePositionProvider,)

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[Mutant] = []
        self._lines = source.splitlines(keepends=True)
        self._module = cst.parse_module(source)  # for the code of nodes: it knows the indentation
        self._names: list[str] = []
        self._depth_of_function = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if _says_nothing(node):
            return False
        if isinstance(node, cst.ClassDef | cst.FunctionDef):
            if not self._depth_of_function:
                self._names.append(node.name.value)
            self._depth_of_function += isinstance(node, cst.FunctionDef) or bool(self._depth_of_function)
        for place, replacement in _mistakes(node, self._module):
            self._note(place, replacement)
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.ClassDef | cst.FunctionDef):
            self._depth_of_function -= bool(self._depth_of_function)
            if not self._depth_of_function:
                self._names.pop()

    def _note(self, place: cst.CSTNode, replacement: str) -> None:
        span: CodeRange = self.get_metadata(WhitespaceInclusivePositionProvider, place)
        first, last = span.start.line - 1, span.end.line - 1
        before, after = self._lines[first][: span.start.column], self._lines[last][span.end.column :]
        changed = f"{before}{replacement}{after}".splitlines(keepends=True)
        old = self._lines[first : last + 1]
        source = "".join([*self._lines[:first], *changed, *self._lines[last + 1 :]])
        while old and changed and old[0] == changed[0]:
            old, changed, first = old[1:], changed[1:], first + 1
        while old and changed and old[-1] == changed[-1]:
            old, changed = old[:-1], changed[:-1]
        function = ".".join(self._names) if self._depth_of_function else ""
        self.found.append(Mutant(function, first + 1, _text(old), _text(changed), source))


def _text(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def _says_nothing(node: cst.CSTNode) -> bool:
    """Tell whether right code cannot be told from wrong code here: types, asserted invariants, what a decorator is told, `len`."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Assert | cst.Import | cst.ImportFrom):
        return True
    if isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString):  # a docstring
        return True
    if isinstance(node, cst.Arg) and _is_strict(node):
        return True
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("len", "isinstance", "cast")


def _is_words(node: cst.CSTNode) -> bool:
    """Tell whether a text is for people: what it says in words is no behaviour."""
    return isinstance(node, cst.FormattedString | cst.ConcatenatedString) or (
        isinstance(node, cst.SimpleString) and " " in node.value
    )


def _mistakes(node: cst.CSTNode, module: cst.Module) -> Iterator[tuple[cst.CSTNode, str]]:
    """Yield each place at this node where a mistake can be made, with the code that then stands there."""
    if not _is_words(node):
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and operator is not operator_match:
                for mutated in operator(node):
                    if not _drops_words(node, mutated) and not _says_no_otherwise(node, mutated):
                        yield node, module.code_for_node(mutated)
    match node:
        case cst.If(test=test):
            yield test, f"({module.code_for_node(test).strip()}) and False"
            yield test, f"({module.code_for_node(test).strip()}) or True"
        case cst.While(test=test):
            yield test, f"({module.code_for_node(test).strip()}) and False"
        case cst.CompIf():
            yield node, ""
        case cst.BooleanOperation(left=left, right=right):
            yield node, f"({module.code_for_node(left)})"
            yield node, f"({module.code_for_node(right)})"
        case cst.Expr() | cst.AugAssign() | cst.Del():
            yield node, "pass"
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Attribute() | cst.Subscript())]):
            yield node, "pass"
        case cst.Call(func=cst.Name(value=name)) if name in SWAPPED:
            yield node.func, SWAPPED[name]


def _drops_words(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    if not isinstance(node, cst.Call) or not isinstance(mutated, cst.Call):
        return False
    return any((_is_words(argument.value) or _is_strict(argument)) and argument not in mutated.args for argument in node.args)


def _is_strict(argument: cst.Arg) -> bool:
    """Tell whether an argument asserts something of what is zipped."""
    return argument.keyword is not None and argument.keyword.value == "strict"


def _says_no_otherwise(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """Tell whether None takes the place of False, as no reader of a truth value can tell."""
    match node, mutated:
        case cst.Assign() | cst.AnnAssign(), cst.Assign() | cst.AnnAssign():
            pairs = [(node.value, mutated.value)]
        case cst.Call(), cst.Call():
            pairs = [(old.value, new.value) for old, new in zip(node.args, mutated.args, strict=False)]
        case _:
            return False
    changes = [(old, new) for old, new in pairs if old is not new]
    return [(old.value, new.value) for old, new in changes if isinstance(old, cst.Name) and isinstance(new, cst.Name)] == [
        ("False", "None")
    ]
