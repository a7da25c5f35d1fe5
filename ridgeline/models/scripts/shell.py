"""A shell launch script read as data: its variables, and the command that starts the training. Nothing is executed.

Understood are assignments, ``$VAR``, ``${VAR}``, ``${VAR:-default}``, arrays, ``$(( ))``, quotes, line continuations,
comments and here-documents. Of an ``if``, the first branch is read. What a variable of the environment or a command
would give stays in the text as it is written (``$VAR``), for the reader of the arguments to judge.
"""

import ast
import operator
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ridgeline.core.errors import Problem, SpecError
from ridgeline.core.frozen import frozen

PROGRAM = re.compile(r"(^|/)(pretrain|posttrain|train|finetune)\w*\.py$")
LOOKED_FOR = "torchrun, msrun, python -m torch.distributed.launch or python, with a pretrain*.py or posttrain*.py"
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_VARIABLE = re.compile(r"[A-Za-z_]\w*|[0-9@*#?]")
_ARITHMETIC = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}
    | {ast.Mod: operator.mod}
)
_BREAKS = " \t\n;|&()<>"


@frozen
class Command:
    """How a script starts its training.

    Attributes:
        program: The Python file that is started.
        launcher: Arguments of torchrun, without ``--``, ``-`` spelled ``_``.
        arguments: Arguments of the program.
    """

    program: str
    launcher: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]


def training_command(text: str, *, source: str, variables: Mapping[str, str] = MappingProxyType({})) -> Command:
    """The command of a script that starts a training.

    Args:
        text: The script.
        source: Its name, for messages.
        variables: Given instead of what the script or its environment say.

    Raises:
        SpecError: The script has no such command.
    """
    values: dict[str, list[str]] = {name: [value] for name, value in variables.items()}
    for raw in _first_branches(_commands(text)):
        words = _run(raw, values, fixed=frozenset(variables))
        if found := _training(words):
            return found
    raise SpecError(Problem("script", source, "is no launch script: it starts no training", f"looked for {LOOKED_FOR}"))


def _training(words: list[str]) -> Command | None:
    starts = [i for i, word in enumerate(words) if re.search(r"(^|/)(torchrun|msrun|python[\d.]*)$", word)]
    if not starts:
        return None
    program = next((i for i in range(starts[0] + 1, len(words)) if PROGRAM.search(words[i])), None)
    if program is None:
        return None
    launcher: list[tuple[str, str]] = []
    for word in words[starts[0] + 1 : program]:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            launcher.append((name.replace("-", "_"), value))
        elif launcher and not launcher[-1][1]:
            launcher[-1] = (launcher[-1][0], word)
    return Command(words[program], tuple(launcher), tuple(words[program + 1 :]))


def _first_branches(commands: Iterator[list[str]]) -> Iterator[list[str]]:
    """Commands without those of ``else`` and ``elif``, and without the words of control."""
    depth, skipping = 0, 0
    for command in commands:
        words = command
        while words and words[0] in ("if", "then", "else", "elif", "fi", "do", "done", "while", "for", "{", "}", "!"):
            word, *words = words
            if word == "if":
                depth += 1
            elif word in ("else", "elif") and not skipping:
                skipping = depth
            elif word == "fi":
                skipping = 0 if skipping == depth else skipping
                depth -= 1
        if words and not skipping:
            yield words


def _run(raw: list[str], values: dict[str, list[str]], *, fixed: frozenset[str]) -> list[str]:
    """Carry out the assignments that a command begins with; the words that are left."""
    if raw[0] in ("export", "local", "readonly", "declare"):
        raw = [word for word in raw[1:] if _ASSIGNMENT.match(word)]
    while raw and (match := _ASSIGNMENT.match(raw[0])):
        name, text = match[1], raw[0][match.end() :]
        if text.startswith("("):
            items = [field for word in _commands(text[1:-1]) for item in word for field in _expand(item, values)]
        else:
            items = ["".join(_expand(text, values, split=False))]
        if name not in fixed:
            before = values.get(name, []) if match[2] else []
            whole = [*before, *items] if text.startswith("(") or not before else [before[0] + items[0], *before[1:]]
            values[name] = whole
        raw = raw[1:]
    return [field for word in raw for field in _expand(word, values)]


def _commands(text: str) -> Iterator[list[str]]:
    """The commands of a script as lists of words, with their quotes; an array is one word."""
    text = text.replace("\r\n", "\n")
    words: list[str] = []
    ends: list[str] = []
    i = 0
    while i < len(text):
        char = text[i]
        if text.startswith("\\\n", i):
            i += 2
        elif char in " \t()":
            i += 1
        elif char == "#":
            i = _until(text, "\n", i)
        elif char in "<>":
            heredoc = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?").match(text, i)
            if heredoc and not text.startswith("<<<", i):
                ends.append(heredoc[1])
                i = heredoc.end()
            else:
                if words and words[-1] in ("1", "2") and text[i - 1] == words[-1]:
                    words.pop()
                i = re.compile(r"[<>&]+[ \t]*").match(text, i).end()  # pyright: ignore[reportOptionalMemberAccess]
                i = _word_end(text, i)
        elif char in "\n;|&":
            i += 1
            if char == "\n":
                while ends:
                    closing = re.compile(rf"^\s*{ends.pop(0)}\s*$", re.M).search(text, i)
                    i = closing.end() if closing else len(text)
            if words:
                yield words
            words = []
        else:
            end = _word_end(text, i)
            if text.startswith("(", end) and _ASSIGNMENT.fullmatch(text[i:end]):
                end = _closing(text, end, "(", ")")
            words.append(text[i:end])
            i = end
    if words:
        yield words


def _until(text: str, mark: str, start: int) -> int:
    end = text.find(mark, start)
    return len(text) if end < 0 else end


def _word_end(text: str, i: int) -> int:
    while i < len(text) and text[i] not in _BREAKS and not text.startswith("\\\n", i):
        i = _piece_end(text, i)
    return i


def _piece_end(text: str, i: int) -> int:
    """Where a quoted part, an expansion or a character ends."""
    if text[i] == "\\":
        return i + 2
    if text[i] in "'`":
        return _until(text, text[i], i + 1) + 1
    if text[i] == '"':
        i += 1
        while i < len(text) and text[i] != '"':
            i = i + 1 if text[i] == "'" else _piece_end(text, i)
        return i + 1
    if text.startswith("$(", i):
        return _closing(text, i + 1, "(", ")")
    if text.startswith("${", i):
        return _closing(text, i + 1, "{", "}")
    return i + 1


def _closing(text: str, i: int, opening: str, closing: str) -> int:
    """Behind the bracket that closes the one at ``i``."""
    depth = 0
    while i < len(text):
        depth += (text[i] == opening) - (text[i] == closing)
        if not depth:
            return i + 1
        i = _until(text, "\n", i) if text[i] == "#" and text[i - 1] in " \t\n" else i
        i = _piece_end(text, i) if i < len(text) and text[i] in "'\"\\" else i + 1
    return len(text)


def _expand(word: str, values: Mapping[str, list[str]], *, split: bool = True) -> list[str]:
    """The fields that the shell would make of a word."""
    fields: list[str] = []
    open_field: str | None = None
    i, quoted = 0, False
    while i < len(word):
        char, end = word[i], i + 1
        if char == '"':
            quoted, open_field = not quoted, open_field or ""
        elif char == "'" and not quoted:
            end = _until(word, "'", i + 1) + 1
            open_field = (open_field or "") + word[i + 1 : end - 1]
        elif char == "\\":
            end = i + 2
            taken = word[i + 1 : end]
            open_field = (open_field or "") + ("" if taken == "\n" else taken)
        elif char == "$" and i + 1 < len(word):
            end, items = _variable(word, i, values)
            if quoted or not split:
                many = quoted and split and "[@]" in word[i:end]
                first, *rest = items if many else [" ".join(items)]
                open_field = (open_field or "") + first
                for item in rest:
                    fields.append(open_field)
                    open_field = item
            else:
                for item in items:
                    for count, piece in enumerate(re.split(r"\s+", item)):
                        if count or (item is not items[0] and open_field):
                            if open_field:
                                fields.append(open_field)
                            open_field = None
                        open_field = (open_field or "") + piece if piece else open_field
        else:
            open_field = (open_field or "") + char
        i = end
    return fields if open_field is None else [*fields, open_field]


def _variable(word: str, i: int, values: Mapping[str, list[str]]) -> tuple[int, list[str]]:
    """Where the expansion at ``i`` ends and what it gives; itself, where the script does not say."""
    if word.startswith("$((", i):
        end = _closing(word, i + 1, "(", ")")
        number = _arithmetic(word[i + 3 : end - 2], values)
        return end, [word[i:end] if number is None else str(number)]
    if word[i + 1] == "{":
        end = _closing(word, i + 1, "{", "}")
        return end, _braced(word[i:end], values)
    if word[i + 1] == "(":
        end = _closing(word, i + 1, "(", ")")
        return end, [word[i:end]]
    match = _VARIABLE.match(word, i + 1)
    if not match:
        return i + 1, ["$"]
    return match.end(), values.get(match[0], [f"${match[0]}"])[:1] or [""]


def _braced(text: str, values: Mapping[str, list[str]]) -> list[str]:
    inner = text[2:-1]
    if length := re.fullmatch(r"#(\w+)\[[@*]\]", inner):
        return [str(len(values[length[1]]))] if length[1] in values else [text]
    match = re.fullmatch(r"(\w+)(\[[@*\d]+\])?(?:(:?[-=])(.*))?", inner, re.S)
    if not match:
        return [text]
    name, index, otherwise, default = match.groups()
    if name in values and not (otherwise and otherwise[0] == ":" and values[name] == [""]):
        whole = values[name]
        if index and index[1] in "@*":
            return whole or [""]
        at = int(index[1:-1]) if index else 0
        return [whole[at] if at < len(whole) else ""]
    return ["".join(_expand(default, values, split=False))] if otherwise else [text]


def _arithmetic(text: str, values: Mapping[str, list[str]]) -> int | None:
    """The value of an integer expression; None if a part of it is not known."""

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name):
                return int(values[name][0])
            case ast.BinOp(left=left, op=op, right=right):
                return _ARITHMETIC[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case _:
                raise ValueError(text)

    plain = re.sub(r"\$\{?(\w+)\}?", r"\1", text).strip().replace("/", "//")
    try:
        return value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, IndexError, ZeroDivisionError):
        return None
