"""The instructions of PTX, each as C++ (instructions.h, runner.h). What is not here is an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptx import Type, Unknown, parts_of

if TYPE_CHECKING:
    from translate import Body

SPACES = ("global", "shared", "local", "param")
HINTS = ("ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "weak")
PRED = Type("p", 1)
B32 = Type("b", 32)
U64 = Type("u", 64)

# What instructions are counted as (runner.cpp names the same).
CLASSES = ("integer", "multiply", "float32", "float64", "convert", "predicate", "move", *SPACES, "meet", "branch")


def class_of(opcode: str, modifiers: list[str]) -> int:
    """What an instruction is counted as."""
    last = modifiers[-1] if modifiers else ""
    if opcode in ("ld", "st"):
        found = next((space for space in SPACES if space in modifiers), "global")
    elif opcode in ("bar", "shfl", "vote", "membar", "fence", "atom", "red", "nanosleep"):
        found = "meet"
    elif opcode in ("bra", "ret", "exit", "call", "trap", "brkpt"):
        found = "branch"
    elif opcode in ("setp", "selp") or last == "pred":
        found = "predicate"
    elif opcode in ("mov", "cvta"):
        found = "move"
    elif opcode == "cvt":
        found = "convert"
    elif last in ("f32", "f64"):
        found = "float" + last[1:]
    else:
        found = "multiply" if opcode in ("mul", "mad", "div", "rem") else "integer"
    return CLASSES.index(found)


def label_of(name: str) -> str:
    return "L" + name.replace("$", "_")


Handler = Callable[["Body", list[str], list[str]], None]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return add


def only(modifiers: list[str], *known: str) -> None:
    """Fails at a modifier that is not among those."""
    for each in modifiers:
        if each not in known:
            raise Unknown(f"modifier {each}")


def define(
    opcode: str,
    integers: str,
    floats: str = "",
    *,
    known: str = "",
    operands: str = "",
    to: str = "",
    saturated: str = "",
    halves: str = "",
) -> None:
    """An instruction whose last modifier is its type, and what it gives.

    The expressions are of its operands: A, B, C are their words, a, b, c what C++ computes with, T is their type.
    `floats` gives a number, or after "bits" a word. `known`: modifiers that change nothing in that. `operands`: their
    types, and `to`, the result's, where they are not the instruction's. `saturated`, `halves`: other expressions, for
    .sat and for types of two halves.
    """

    def handle(body: Body, modifiers: list[str], given: list[str]) -> None:
        *rest, name = modifiers
        if halves and not rest and name in ("u16x2", "s16x2"):
            a, b = (body.word(each, B32) for each in given[1:])
            body.write(given[0], B32, f"halves<{name[:3]}>({a}, {b}, [](auto a, auto b) {{ return {halves}; }})")
            return
        type = Type.of(name)
        is_saturated = "sat" in rest
        expression = floats if type.kind == "f" else saturated if is_saturated else integers
        if not expression:
            raise Unknown(f"type {name}")
        only(rest, *known.split(), *(["rn", "sat"] if type.kind == "f" else ["sat"] if saturated else []))
        types = [Type.of(each) if each else type for each in operands.split(",")] if operands else [type] * 3
        values = {"T": type.integer}
        for key, each, of in zip("abc", given[1:], types, strict=False):
            values[key] = f"({body.value(each, of)})"
            values[key.upper()] = f"({body.word(each, of)})"
        text = re.sub(r"\b[abcABCT]\b", lambda match: values[match[0]], expression.removeprefix("bits "))
        if "SITE" in text:
            text = text.replace("SITE", body.site())
        if type.kind == "f" and not expression.startswith("bits "):
            text = f"result({'saturated' if is_saturated else ''}({text}))"
        body.write(given[0], Type.of(to) if to else type, text)

    HANDLERS[opcode] = handle


define("add", "A + B", "a + b", saturated="clamped<T>(s128{a} + b)", halves="a + b")
define("sub", "A - B", "a - b", saturated="clamped<T>(s128{a} - b)", halves="a - b")
define("min", "a < b ? a : b", "bits smallest(a, b)", halves="a < b ? a : b")
define("max", "a > b ? a : b", "bits largest(a, b)", halves="a > b ? a : b")
define("neg", "0 - A", "bits A ^ sign(A)")
define("abs", "a < 0 ? 0 - A : A", "bits A & ~sign(A)")
define("and", "A & B")
define("or", "A | B")
define("xor", "A ^ B")
define("not", "inverted(A)")
define("div", "quotient<T>(SITE, a, b)", "a / b")
define("rem", "remainder<T>(SITE, a, b)")
define("sqrt", "", "std::sqrt(a)")
define("rcp", "", "1 / a")
define("fma", "", "std::fma(a, b, c)")
define("shl", "shl<T>(A, b)", operands=",u32")
define("shr", "shr<T>(a, b)", operands=",u32")
define("bfe", "bfe<T>(a, b, c)", operands=",u32,u32")
define("brev", "brev<T>(A)")
define("popc", "popc(A)", to="u32")
define("clz", "clz(A)", to="u32")
define("prmt", "prmt(A, B, C)")


@handles("mul", "mad")
def _multiply(body: Body, modifiers: list[str], operands: list[str]) -> None:
    *rest, name = modifiers
    type = Type.of(name)
    a, b = (body.value(each, type) for each in operands[1:3])
    if type.kind == "f":
        only(rest + ["no sum"] * (len(operands) - 3), "rn", "sat")
        body.write(operands[0], type, f"result({'saturated' if 'sat' in rest else ''}({a} * {b}))")
        return
    to = Type(type.kind, 2 * type.bits) if rest[0] == "wide" else type
    product = {
        "wide": f"static_cast<{to.word}>(static_cast<{to.integer}>({a}) * static_cast<{to.integer}>({b}))",
        "lo": f"static_cast<{to.word}>(static_cast<u64>({a}) * static_cast<u64>({b}))",
        "hi": f"static_cast<{to.word}>(mul_hi<{type.integer}>({a}, {b}))",
    }[rest[0]]
    if rest[1:] == ["sat"] and name == "s32" and len(operands) == 4:
        added = f"clamped<s32>(s128{{static_cast<s32>({product})}} + {body.value(operands[3], to)})"
    else:
        only(rest[1:])
        added = f"{product} + {body.word(operands[3], to)}" if len(operands) == 4 else product
    body.write(operands[0], to, added)


@handles("shf")
def _funnel_shift(body: Body, modifiers: list[str], operands: list[str]) -> None:
    side, how, _ = modifiers
    only([side, how, modifiers[2]], "l", "r", "wrap", "clamp", "b32")
    a, b, n = (body.word(each, B32) for each in operands[1:])
    body.write(operands[0], B32, f"shf_{side}({a}, {b}, {how}({n}))")


@handles("bfi")
def _insert_bits(body: Body, modifiers: list[str], operands: list[str]) -> None:
    type = Type.of(*modifiers)
    a, b = (body.word(each, type) for each in operands[1:3])
    at, count = (body.word(each, B32) for each in operands[3:])
    body.write(operands[0], type, f"bfi<{type.word}>({a}, {b}, {at}, {count})")


@handles("bfind")
def _find_bit(body: Body, modifiers: list[str], operands: list[str]) -> None:
    only(modifiers[:-1], "shiftamt")
    type = Type.of(modifiers[-1])
    text = f"bfind<{type.integer}>({body.value(operands[1], type)}, {str('shiftamt' in modifiers).lower()})"
    body.write(operands[0], B32, text)


@handles("lop3")
def _logic(body: Body, modifiers: list[str], operands: list[str]) -> None:
    only(modifiers, "b32")
    a, b, c, table = (body.word(each, B32) for each in operands[1:])
    body.write(operands[0], B32, f"lop3({a}, {b}, {c}, {table})")


@handles("mov")
def _move(body: Body, modifiers: list[str], operands: list[str]) -> None:
    type = Type.of(*modifiers)
    to, given = operands
    parts = parts_of(to if to[0] == "{" else given)
    part = Type("b", type.bits // len(parts))
    if to[0] == "{":  # the low part comes first
        body.lines.append(f"{{ const {type.word} whole = {body.word(given, type)};")
        for i, each in enumerate(parts):
            body.write(each, part, f"whole >> {i * part.bits}")
        body.lines.append("}")
    elif given[0] == "{":
        terms = [
            f"static_cast<{type.word}>({body.word(each, part)}) << {i * part.bits}" for i, each in enumerate(parts)
        ]
        body.write(to, Type("b", type.bits), " | ".join(terms))
    else:
        body.write(to, type if type == PRED else Type("b", type.bits), body.word(given, type))


@handles("cvta")
def _convert_address(body: Body, modifiers: list[str], operands: list[str]) -> None:
    *to, space, _ = modifiers
    only(modifiers, "to", "u64", *SPACES)
    address = body.word(operands[1], U64)
    if space == "param":
        only(to)
        address = f"generic_of_param({address})"
    elif space == "shared":
        address = f"{'shared_of_generic' if to else 'generic_of_shared'}({address})"
    body.write(operands[0], U64, address)


@handles("selp")
def _select(body: Body, modifiers: list[str], operands: list[str]) -> None:
    type = Type("b", Type.of(*modifiers).bits)
    a, b = (body.word(each, type) for each in operands[1:3])
    body.write(operands[0], type, f"{body.register(operands[3])} ? {a} : {b}")


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


@handles("setp")
def _compare(body: Body, modifiers: list[str], operands: list[str]) -> None:
    how, *combined, name = modifiers
    type = Type.of(name)
    a, b = (body.value(each, type) for each in operands[1:3])
    unordered = f"({a} != {a} || {b} != {b})"
    if type.kind != "f":
        holds = f"{a} {(COMPARISONS | UNSIGNED)[how]} {b}"
    elif how in ("num", "nan"):
        holds = unordered if how == "nan" else f"!{unordered}"
    elif how in COMPARISONS:  # C++'s != alone holds for NaN
        holds = f"({a} {COMPARISONS[how]} {b})" + (f" && !{unordered}" if how == "ne" else "")
    else:
        holds = f"({a} {COMPARISONS[how.removesuffix('u')]} {b}) || {unordered}"
    to = operands[0].split("|")
    results = [f"({holds})", f"!({holds})"][: len(to)]
    if combined:
        symbol = {"and": "&", "or": "|", "xor": "^"}[combined[0]]
        results = [f"{each} {symbol} {body.word(operands[3], PRED)}" for each in results]
    only(combined[1:])
    body.lines.append("{ const bool found[] = {" + ", ".join(f"static_cast<bool>({each})" for each in results) + "};")
    for i, each in enumerate(to):
        body.write(each, PRED, f"found[{i}]")
    body.lines.append("}")


ROUNDINGS = {"rni": "nearest", "rzi": "zero", "rmi": "down", "rpi": "up"}


@handles("cvt")
def _convert(body: Body, modifiers: list[str], operands: list[str]) -> None:
    *rest, to_name, from_name = modifiers
    to, given = Type.of(to_name), Type.of(from_name)
    value = body.value(operands[1], given)
    if given == Type("f", 16):
        value = f"from_f16({body.word(operands[1], given)})"
    how = [each for each in rest if each != "sat"]
    if given.kind != "f" and to.kind != "f":
        only(how)
        text = f"clamped<{to.integer}>({value})" if "sat" in rest else value
    elif to.kind != "f":  # which always saturates
        only(how, *ROUNDINGS)
        text = f"to_integer<{to.integer}>({value}, Round::{ROUNDINGS[how[0]]})"
    else:
        if how and how[0] in ROUNDINGS:
            if to != given:
                raise Unknown("to an integer of another type")
            value = f"rounded({value}, Round::{ROUNDINGS[how[0]]})"
        elif how != ["rn"] and (given.kind != "f" or given.bits > to.bits):
            raise Unknown("rounding")
        if to.bits == 16 and given != Type("f", 32):
            raise Unknown("to f16 but from f32")
        number = f"static_cast<{'double' if to.bits == 64 else 'float'}>({value})"
        number = f"saturated({number})" if "sat" in rest else number
        text = f"to_f16({number})" if to.bits == 16 else f"result({number})"
    body.write(operands[0], to, text)


# ---- memory


def access(body: Body, modifiers: list[str], kind: str, operand: str, *known: str) -> tuple[str, Type, int]:
    """Where an access's bytes are, as C++ (of a write the site and the address); their type, and how many of them."""
    *rest, name = modifiers
    count = next((int(each[1]) for each in rest if each in ("v2", "v4")), 1)
    space = next((each for each in SPACES if each in rest), "generic")
    is_strong = kind == "update" or "volatile" in rest or "relaxed" in rest
    if "relaxed" in rest and "gpu" not in rest and "sys" not in rest:
        raise Unknown("scope")
    only(rest, "volatile", "relaxed", "gpu", "sys", "v2", "v4", *known, *SPACES, *HINTS)
    type = Type.of(name)
    address, variable = body.address(operand)
    if variable and variable.array and space == "param":
        return variable.array + address.removeprefix(body.place(variable)), type, count
    if variable and space == "param" and kind == "read":
        return f"parameters() + ({address})", type, count
    if is_strong:
        body.lines.append("strong();")
    site = body.site(space, kind, is_strong, count * type.bits // 8)
    return f"{site}, {address}" if kind == "write" else f"at({site}, {address})", type, count


@handles("ld")
def _load(body: Body, modifiers: list[str], operands: list[str]) -> None:
    place, type, count = access(body, modifiers, "read", operands[1])
    body.lines.append(f"{{ const unsigned char* const from = {place};")
    for i, each in enumerate(parts_of(operands[0])):
        integer = Type("b" if type.kind == "f" else type.kind, type.bits)
        body.write(each, integer, f"get<{type.word}>(from + {i * type.bits // 8})")
    body.lines.append("}")
    if len(parts_of(operands[0])) != count:
        raise Unknown("vector")


@handles("st")
def _store(body: Body, modifiers: list[str], operands: list[str]) -> None:
    place, type, count = access(body, modifiers, "write", operands[0])
    parts = parts_of(operands[1])
    if len(parts) != count:
        raise Unknown("vector")
    values = ", ".join(f"static_cast<{type.word}>({body.word(each, type)})" for each in parts)
    body.lines.append(f"{{ const {type.word} values[] = {{{values}}};")
    body.lines.append(f"store({place}, values, sizeof values); }}")


UPDATES = {
    "add": "before + b",
    "exch": "b",
    "and": "before & b",
    "or": "before | b",
    "xor": "before ^ b",
    "min": "before < b ? before : b",
    "max": "before > b ? before : b",
    "cas": "before == b ? c : before",
}


@handles("atom", "red")
def _update(body: Body, modifiers: list[str], operands: list[str]) -> None:
    operation = next(each for each in modifiers if each in UPDATES)
    if len(operands) == (2 if operation != "cas" else 3):
        operands = ["_", *operands]  # red
    place, type, _ = access(body, modifiers, "update", operands[1], operation)
    if type.kind == "f":
        raise Unknown("of floats")
    body.lines.append(f"{{ unsigned char* const memory = {place};")
    body.lines.append(f"const {type.integer} before = get<{type.integer}>(memory);")
    for name, each in zip("bc", operands[2:], strict=False):
        body.lines.append(f"[[maybe_unused]] const {type.integer} {name} = {body.value(each, type)};")
    body.lines.append(f"put<{type.word}>(memory, static_cast<{type.word}>({UPDATES[operation]}));")
    body.write(operands[0], type, "before")
    body.lines.append("}")


# ---- threads that meet


@handles("membar", "fence")
def _fence(body: Body, modifiers: list[str], _: list[str]) -> None:
    if modifiers not in (["gl"], ["sys"], ["sc", "gpu"], ["sc", "sys"]):
        raise Unknown("fence")
    body.lines.append("membar();")


@handles("bar", "barrier")
def _barrier(body: Body, modifiers: list[str], operands: list[str]) -> None:
    (operand,) = operands
    if modifiers == ["warp", "sync"]:
        body.lines.append(f"bar_warp_sync({body.site()}, {body.word(operand, B32)});")
    else:
        only(modifiers, "cta", "sync", "aligned")
        body.lines.append(f"bar_sync({body.site()}, {body.word(operand, B32)});")


@handles("shfl")
def _shuffle(body: Body, modifiers: list[str], operands: list[str]) -> None:
    _, how, _ = modifiers
    only([modifiers[0], modifiers[2]], "sync", "b32")
    kind = {"up": "up", "down": "down", "bfly": "butterfly", "idx": "index"}[how]
    to, *inside = operands[0].split("|")
    value, b, c, mask = (body.word(each, B32) for each in operands[1:])
    body.lines.append("{ bool inside = false;")
    text = f"shuffle({body.site()}, Shuffle::{kind}, &inside, {value}, {b}, {c}, {mask})"
    body.lines.append(f"const u32 found = {text};")
    body.write(to, B32, "found")
    for each in inside:
        body.write(each, PRED, "inside")
    body.lines.append("}")


@handles("vote")
def _vote(body: Body, modifiers: list[str], operands: list[str]) -> None:
    _, how, name = modifiers
    only(modifiers, "sync", "any", "all", "ballot", "pred", "b32")
    bits = f"ballot({body.site()}, {body.word(operands[1], PRED)}, {body.word(operands[2], B32)})"
    body.write(operands[0], Type.of(name), bits + {"any": " != 0", "all": " == 0xffffffffu", "ballot": ""}[how])


@handles("nanosleep")
def _sleep(body: Body, modifiers: list[str], _: list[str]) -> None:
    only(modifiers, "u32")
    body.lines.append("nanosleep();")


# ---- control


@handles("bra")
def _branch(body: Body, modifiers: list[str], operands: list[str]) -> None:
    only(modifiers, "uni")
    body.lines.append(f"goto {label_of(operands[0])};")


@handles("ret", "exit")
def _return(body: Body, modifiers: list[str], _: list[str]) -> None:
    only(modifiers, "uni")
    if body.statement.endswith("exit") and not body.function.is_entry:
        raise Unknown("a thread that ends in a function")
    body.lines.append("return;")


@handles("trap", "brkpt")
def _trap(body: Body, modifiers: list[str], _: list[str]) -> None:
    only(modifiers)
    body.lines.append(f'stop_at({body.site()}, "a trap");')


@handles("call")
def _call(body: Body, modifiers: list[str], operands: list[str]) -> None:
    only(modifiers, "uni")
    name = next(each for each in operands if each[0] != "(")
    given = [part for each in operands if each[0] == "(" for part in parts_of(each)]
    variables = [body.variable(each) for each in given]
    body.lines.append(f"{body.names[name]}({', '.join(each.array for each in variables if each)});")
