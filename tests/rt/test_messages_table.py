"""docs/messages.md has every message of the runtime, and no message that the runtime does not have."""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(path for root in ("infgen_rt", "runtimes/infgen_runtimes") for path in (ROOT / root).rglob("*.py"))
TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PAGE = (ROOT / "docs/messages.md").read_text(encoding="utf-8")
# The first cell of each row, which is code in one or two backticks.
ROWS = [text for _, text in re.findall(r"^\| (`{1,2})(.+?)\1 \|", PAGE, re.MULTILINE)]
LEAST = 12
# Functions that return whole messages, or their ends.
BUILDERS = {
    "_refusal",
    "unsuited",
    "_without_cuda",
    "_again",
    "_mending",
    "_advice",
    "instead_of",
    "or_install",
    "what_fits",
}
BUILDERS |= {"installing", "reinstalling", "upgrading", "missing_library"}
# Messages whose longest fixed part is shorter, and those that are built elsewhere.
SHORT = {"cancelled", "interrupted", "cannot use", "lacks", ", expected"}
ELSEWHERE = {
    "f'{name} {kind}'",
    "f'{name}: {error}'",
    "f'{path}: {error}'",
    "f'{root}: {error}'",
    "f'latent {number} of {len(plain)}: {error}'",
    "f'{error}{advice}'",
    "InfGenWarning(text, cause)",
    "PICKLE",
}
ELSEWHERE |= {"error.format_message()", "line", "str(error)", "text"}


def parts(node: ast.expr, names: dict[str, ast.expr]) -> list[str]:
    """The fixed parts of a message's expression."""
    match node:
        case ast.Constant(value=str(text)):
            return [text.strip()]
        case ast.JoinedStr(values=several):
            return [part for each in several if isinstance(each, ast.Constant) for part in parts(each, names)]
        case ast.BinOp(left=first):  # what is added at the end may be missing
            return parts(first, names)
        case ast.IfExp(body=first, orelse=second):
            return parts(first, names) + parts(second, names)
        case ast.Name(id=name) if name in names:
            return parts(names[name], {})
    return []


def is_maker(name: str) -> bool:
    """Whether a call of this name has a message: an error of this project, a warning, or a line of the command."""
    own = name.endswith(("Error", "Exception")) and not hasattr(builtins, name)
    return own or name in ("Cancelled", "complain", "warn")


def messages() -> Iterator[tuple[str, str, list[str], list[str]]]:
    """The place, the code, the fixed parts and the causes of each message."""
    for path, tree in TREES.items():
        for scope in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            assigned = [node for node in ast.walk(scope) if isinstance(node, ast.Assign)]
            names = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
            for node in ast.walk(scope):
                if scope.name in BUILDERS and isinstance(node, ast.Constant):
                    if len(str(node.value).strip()) >= LEAST and node.value != ast.get_docstring(scope, clean=False):
                        yield f"{path}:{node.lineno}", str(node.value), parts(node, {}), []
                elif isinstance(node, ast.Call) and node.args:
                    method = isinstance(node.func, ast.Attribute)  # `notices.warn(cause, text)`
                    if is_maker(getattr(node.func, "attr" if method else "id", "")):
                        text = node.args[-1 if method else 0]
                        causes = parts(node.args[0], {}) if method and len(node.args) > 1 else []
                        yield f"{path}:{node.lineno}", ast.unparse(text), parts(text, names), causes


def test_the_page_has_every_message_and_every_cause() -> None:
    table, missing = "\n".join(ROWS), []
    for place, code, fixed, causes in messages():
        longest = max(fixed, key=len, default="")
        known = longest in table if len(longest) >= LEAST or longest in SHORT else code in ELSEWHERE
        known |= any(f"{builder}(" in code for builder in BUILDERS)
        if not known or not all(f"`{cause}`" in PAGE for cause in causes):
            missing.append(f"{place} {code}")
    assert not missing, "\n".join(missing)


def test_the_page_has_no_message_that_the_runtime_does_not_have() -> None:
    nodes = (node for tree in TREES.values() for node in ast.walk(tree))
    sources = "\n".join(str(node.value) for node in nodes if isinstance(node, ast.Constant))
    pieces = {piece.strip(" :") for row in ROWS for piece in row.split("...")}
    assert len(ROWS) > 100 and sorted(piece for piece in pieces if piece not in sources) == []
