"""Reads PTX: its functions, their variables and statements."""

import re
from dataclasses import dataclass, field

FUNCTION = re.compile(r"(?:\.visible |\.weak )*\.(entry|func) *(?:\(([^)]*)\))? *([\w$]+) *(?:\(([^)]*)\))?(.*)")
VARIABLE = re.compile(r"\.(\w+) (?:\.align (\d+) )?\.(\w+) ([\w$]+)(?:\[(\d+)\])?$")


class Unknown(Exception):
    """PTX that this does not translate."""


@dataclass(frozen=True)
class Type:
    """A type of PTX: its kind (b, u, s, f, p) and bits."""

    kind: str
    bits: int

    @staticmethod
    def of(name: str) -> "Type":
        if name == "pred":
            return Type("p", 1)
        match = re.fullmatch(r"([busf])(8|16|32|64)", name)
        if not match:
            raise Unknown(f"type {name}")
        return Type(match[1], int(match[2]))

    @property
    def word(self) -> str:
        """How registers hold it."""
        return "bool" if self.kind == "p" else f"u{self.bits}"

    @property
    def integer(self) -> str:
        """As which C++ computes with it."""
        return f"s{self.bits}" if self.kind == "s" else self.word


@dataclass
class Variable:
    """Something that has an address: `at` in its space, or the C++ array that stands for it."""

    space: str
    bytes: int
    at: int
    array: str = ""


@dataclass
class Function:
    """A kernel, or a function that kernels call."""

    name: str
    is_entry: bool
    most_threads: int
    parameters: dict[str, Variable]
    results: dict[str, Variable]
    shared: dict[str, Variable] = field(default_factory=dict)
    statements: list[tuple[int, str]] = field(default_factory=list)


def statements(text: str) -> list[tuple[int, str]]:
    """The statements, labels, braces, and heads of functions that have a body, each with its line."""
    text = re.sub(r"//[^\n]*", "", text)
    found = []
    at, line = 0, 1
    while begin := re.compile(r"\S").search(text, at):
        line += text.count("\n", at, begin.start())
        at = begin.start()
        end = re.compile(r"[{}]|[$\w]+:(?!:)|\.(version|target|address_size)[^\n]*").match(text, at)
        is_head = re.compile(r"(\.visible\s+|\.weak\s+)*\.(entry|func)\b").match(text, at) is not None
        if end:
            statement = end[0]
        else:
            end = re.compile(r"[;{]" if is_head else ";").search(text, at)
            if not end:
                raise Unknown(f"line {line}: no end")
            statement = " ".join(text[at : end.start()].split())
        if not (is_head and end[0] == ";"):
            found.append((line, statement))
        after = end.start() if is_head and end[0] == "{" else end.end()
        line += text.count("\n", at, after)
        at = after
    return found


def laid_out(declarations: list[str], gap: int = 0) -> dict[str, Variable]:
    """Variables one behind the other, as their alignments ask."""
    variables: dict[str, Variable] = {}
    at = 0
    for declaration in declarations:
        match = VARIABLE.fullmatch(declaration.strip())
        if not match:
            raise Unknown(f"declaration {declaration}")
        size = Type.of(match[3]).bits // 8
        align = int(match[2] or size)
        at = -(-at // align) * align
        variables[match[4]] = Variable(match[1], size * int(match[5] or 1), at)
        at += variables[match[4]].bytes + gap
    return variables


def parse(text: str) -> dict[str, Function]:
    """The functions of a program."""
    functions: dict[str, Function] = {}
    shared: list[str] = []  # of the whole program
    function = None
    depth = 0
    for line, statement in statements(text):
        if function:
            function.statements.append((line, statement))
            depth += (statement == "{") - (statement == "}")
            if depth == 0:
                own = [each for _, each in function.statements if each.startswith(".shared")]
                function.shared = laid_out(shared + own, gap=16)  # of bytes that are no variable's
                functions[function.name] = function
                function = None
        elif match := FUNCTION.fullmatch(statement):
            results, parameters = (laid_out([each for each in (match[i] or "").split(",") if each]) for i in (2, 4))
            threads = re.search(r"\.(?:maxntid|reqntid) (\d+)", match[5])
            most = int(threads[1]) if threads else 1024
            function = Function(match[3], match[1] == "entry", most, parameters, results)
        elif statement.startswith(".shared"):
            shared.append(statement)
        elif not re.match(r"\.(version|target|address_size|file) ", statement):
            raise Unknown(f"line {line}: {statement}")
    return functions


def split(text: str) -> list[str]:
    """The operands, at the commas that no bracket is around."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,])+", text)
    return [part.strip() for part in parts if part.strip()]


def parts_of(operand: str) -> list[str]:
    """What is in braces or parentheses; or what is in none."""
    return split(operand[1:-1]) if operand[0] in "{(" else [operand]
