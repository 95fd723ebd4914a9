"""Translates PTX to C++ that runs it on the host (runner.h): translate.py FILE OUT

FILE is PTX, or an object of nvcc's that holds it uncompressed (--no-compress). A kernel becomes a function that is
called once for each thread, its registers local variables.

What this does not know is an error that names the line. A modifier is passed over only where it is a hint.
"""

import re
import sys
from pathlib import Path

from instructions import CLASSES, HANDLERS, PRED, class_of, label_of
from ptx import Function, Type, Unknown, Variable, laid_out, parse, split

REGISTERS = re.compile(r"\.reg \.(\w+) (%?\w+)(?:<(\d+)>)?")
INSTRUCTION = re.compile(r"(?:@(!?)(%\w+) )?([a-z][\w.:]*) ?(.*)")
COORDINATES = {"tid": "thread_index", "ctaid": "block_index", "ntid": "block_size", "nctaid": "grid_size"}


def literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Output:
    """The C++ of some functions: their code, and the tables that it refers to."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.sites: list[str] = []
        self.blocks: list[tuple[int, list[int]]] = []
        self.code: list[str] = []

    def add(self, functions: dict[str, Function]) -> None:
        names = {name: f"function_{i}" for i, name in enumerate(functions)}
        bodies = []
        for i, function in enumerate(functions.values()):
            arrays = [*function.results.values(), *function.parameters.values()]
            for k, each in enumerate(arrays):
                each.array = "" if function.is_entry else f"given{k}"
            given = ", ".join(f"unsigned char* {each.array}" for each in arrays if each.array)
            head = f"static void {names[function.name]}({given})"
            self.code.append(f"{head};")
            bodies += [f"// {function.name}", head, *Body(i, function, names, self).translate(), ""]
        self.code += ["", *bodies]
        rows = []
        for function in functions.values():
            slots = []
            for variables in (function.parameters.values(), function.shared.values()):
                pairs = ", ".join(f"{{{each.at}, {each.bytes}}}" for each in variables)
                slots.append(f"slots_{len(self.code)}" if pairs else "nullptr")
                if pairs:
                    self.code.append(f"static const Slot {slots[-1]}[] = {{{pairs}}};")
            size = max((each.at + each.bytes for each in function.shared.values()), default=0)
            entry = names[function.name] if function.is_entry else "nullptr"
            rows.append(
                f"{{{literal(function.name)}, {entry}, {function.most_threads}, {len(function.parameters)}, "
                f"{slots[0]}, {size}, {len(function.shared)}, {slots[1]}}}"
            )
        self.code += ["static const Function functions[] = {", *(row + "," for row in rows), "};"]

    def text(self, functions: int) -> str:
        blocks = [f"{{{function}, {{{', '.join(map(str, counts))}}}}}," for function, counts in self.blocks]
        return "\n".join(
            [
                '#include "runner.h"',
                "using namespace ptx;",
                f"static u64 hits[{len(blocks)}];",
                "static const Site sites[] = {",
                *self.sites,
                "};",
                *self.code,
                "static const Basic basics[] = {",
                *blocks,
                "};",
                f"static const Module module = {{{literal(self.file)}, functions, {functions}, sites, "
                f"{len(self.sites)}, basics, hits, {len(blocks)}}};",
                "static const Registered registered(module);",
                "",
            ]
        )


class Body:
    """Turns the statements of one function into C++."""

    def __init__(self, index: int, function: Function, names: dict[str, str], output: Output) -> None:
        self.index = index
        self.function = function
        self.names = names
        self.output = output
        self.registers: dict[str, Type] = {}
        self.scopes = [{**function.shared, **function.parameters, **function.results}]
        self.used = {word for _, text in function.statements for word in re.findall(r"%\w+", text)}
        self.arrays = 0
        self.begins_block = True
        self.lines: list[str] = []
        self.line = 0
        self.statement = ""

    def translate(self) -> list[str]:
        for line, statement in self.function.statements:
            self.line, self.statement = line, statement
            try:
                self.add(statement)
            except (Unknown, ValueError, KeyError, IndexError) as error:
                raise Unknown(f"line {line}: {statement}: {error!r}") from error
        return self.lines

    def add(self, text: str) -> None:
        if text == "{":
            self.scopes.append({})
            self.lines.append("{")
        elif text == "}":
            self.scopes.pop()
            self.lines.append("}")
        elif text.endswith(":"):
            self.lines.append(f"{label_of(text[:-1])}:;")
            self.begins_block = True
        elif match := REGISTERS.fullmatch(text):
            self.declare(*match.groups())
        elif text.startswith((".local", ".param")):
            for name, variable in laid_out([text]).items():
                variable.array = f"array{self.arrays}"
                self.arrays += 1
                self.scopes[-1][name] = variable
                self.lines.append(f"alignas(16) unsigned char {variable.array}[{variable.bytes}];")
        elif not text.startswith((".shared", ".pragma", ".loc ")):
            self.instruction(text)

    def declare(self, of: str, name: str, count: str | None) -> None:
        type = Type.of(of)
        names = [f"{name}{i}" for i in range(int(count))] if count else [name]
        self.registers.update((each, type) for each in names)
        # What nobody has set is no number that would pass for a right one.
        poison = "false" if type.kind == "p" else f"static_cast<{type.word}>(0x5a5a5a5a5a5a5a5au)"
        declared = ", ".join(f"{each[1:]} = {poison}" for each in names if each in self.used)
        if declared:
            self.lines.append(f"{type.word} {declared};")

    def instruction(self, text: str) -> None:
        match = INSTRUCTION.fullmatch(text)
        if not match:
            raise Unknown("no instruction")
        negated, predicate, name, operands = match.groups()
        opcode, *modifiers = name.replace("::", "##").split(".")
        if opcode not in HANDLERS:
            raise Unknown("instruction")
        if self.begins_block:
            self.lines.append(f"++hits[{len(self.output.blocks)}];")
            self.output.blocks.append((self.index, [0] * len(CLASSES)))
        self.output.blocks[-1][1][class_of(opcode, modifiers)] += 1
        self.begins_block = opcode in ("bra", "ret", "exit", "trap")
        if predicate:
            self.lines.append(f"if ({negated}{self.register(predicate)}) {{")
        HANDLERS[opcode](self, [each.replace("##", "::") for each in modifiers], split(operands))
        if predicate:
            self.lines.append("}")

    # ---- operands

    def register(self, name: str) -> str:
        if name not in self.registers:
            raise Unknown(f"register {name}")
        return name[1:]

    def variable(self, name: str) -> Variable | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def place(self, variable: Variable) -> str:
        """A variable's address in its space."""
        if variable.array:
            return f"reinterpret_cast<u64>({variable.array})"
        return f"u64{{{variable.at}}}" + (" + kSharedBase" if variable.space == "shared" else "")

    def word(self, operand: str, type: Type) -> str:
        """An operand as the unsigned word of a type."""
        if operand.startswith("!"):
            return f"!{self.register(operand[1:])}"
        if operand == "%laneid":
            return "lane()"
        if "." in operand:
            name, axis = operand[1:].split(".")
            return f"emulation::{COORDINATES[name]}.{axis}"
        if operand.startswith("%"):
            of = self.registers[operand]
            if of.bits < type.bits:
                raise Unknown(f"{operand} is narrower than {type}")
            return operand[1:] if of.bits == type.bits else f"static_cast<{type.word}>({operand[1:]})"
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
            return f"{type.word}{{0x{match[1] or match[2]}u}}"
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+U?", operand):
            number = int(operand.rstrip("U"), 0)
            return "true" if type == PRED and number else f"{type.word}{{0x{number & (1 << type.bits) - 1:x}u}}"
        variable = self.variable(operand)
        if not variable:
            raise Unknown(f"operand {operand}")
        return f"static_cast<{type.word}>({self.place(variable)})"

    def value(self, operand: str, type: Type) -> str:
        """An operand as what C++ computes with."""
        word = self.word(operand, type)
        if type.kind == "f":
            return f"as_f{type.bits}({word})"
        return f"static_cast<{type.integer}>({word})" if type.kind == "s" else word

    def write(self, operand: str, type: Type, value: str) -> None:
        """Gives a register a value; in a wider one a signed one fills it with its sign."""
        if operand == "_":
            self.lines.append(f"static_cast<void>({value});")
            return
        of = self.registers[operand]
        if of.bits < type.bits:
            raise Unknown(f"{operand} is narrower than {type}")
        extended = f"static_cast<{type.integer}>({value})"
        if of.bits > type.bits:
            extended = f"static_cast<{'s' if type.kind == 's' else 'u'}{of.bits}>({extended})"
        self.lines.append(f"{operand[1:]} = static_cast<{of.word}>({extended});")

    def address(self, operand: str) -> tuple[str, Variable | None]:
        """The address in brackets; and its variable, where it names one."""
        match = re.fullmatch(r"\[([%$\w]+)(?:\+(-?\d+))?\]", operand)
        if not match:
            raise Unknown(f"address {operand}")
        variable = self.variable(match[1])
        base = self.place(variable) if variable else f"u64{{{self.register(match[1])}}}"
        offset = int(match[2] or 0) & (1 << 64) - 1
        return (f"{base} + u64{{0x{offset:x}u}}" if offset else base), variable

    def site(self, space: str = "generic", kind: str = "read", strong: bool = False, size: int = 1) -> str:
        self.output.sites.append(
            f"{{{self.line}, Space::{space}, Kind::{kind}, {str(strong).lower()}, {size}, {literal(self.statement)}}},"
        )
        return f"sites[{len(self.output.sites) - 1}]"


# ---- the program


def program_of(path: Path) -> str:
    """PTX: a file of it, or what an object holds."""
    content = path.read_bytes()
    if not content.startswith(b"\x7fELF"):
        return content.decode()
    programs = re.findall(rb"\n(\.version [^\0]+)\0", content)
    if len(programs) != 1:
        raise Unknown(f"{path}: {len(programs)} programs of PTX that are not compressed, expected one")
    return str(programs[0].decode())


def main(source: str, out: str) -> None:
    functions = parse(program_of(Path(source)))
    output = Output(Path(source).name)
    output.add(functions)
    Path(out).write_text(output.text(len(functions)))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Unknown as error:
        sys.exit(f"translate.py: {sys.argv[1]}: {error}")
