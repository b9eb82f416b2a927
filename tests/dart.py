"""Reads a Dart file with a real grammar, for what a Dart compiler would otherwise have to be there for."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tree_sitter_dart_orchard
from tree_sitter import Language, Node, Parser

_DART = Language(tree_sitter_dart_orchard.language())
_FUNCTIONS = ("function_declaration", "method_declaration")


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def text(node: Node | None) -> str:
    assert node is not None
    assert node.text is not None
    return node.text.decode()


def literal(node: Node) -> str:
    """The value of a string literal without substitutions: Python reads it as Dart does."""
    return str(ast.literal_eval(text(node)))


@dataclass(frozen=True, slots=True)
class Dart:
    """One parsed file; `functions` are those of all its classes and its own, by name."""

    root: Node
    functions: dict[str, Node]

    @classmethod
    def read(cls, path: Path) -> "Dart":
        root = Parser(_DART).parse(path.read_bytes()).root_node
        functions = {}
        for node in walk(root):
            if node.type in _FUNCTIONS:
                names = [n for n in walk(node.child_by_field_name("signature")) if n.type == "function_signature"]
                if names:
                    functions[text(names[0].child_by_field_name("name"))] = node
        return cls(root, functions)

    @property
    def mistakes(self) -> list[str]:
        """Where the grammar does not follow, by line."""
        wrong = [node for node in walk(self.root) if node.type == "ERROR" or node.is_missing]
        return [f"line {node.start_point.row + 1}: {text(node)!r}" for node in wrong]

    def calls(self, function: str) -> Iterator[tuple[Node, ...]]:
        """The arguments of every call of `function`."""
        for node in walk(self.root):
            if node.type == "method_invocation" and text(node.child_by_field_name("function")) == function:
                yield tuple(
                    argument.named_children[0]
                    for part in node.named_children
                    for argument in walk(part)
                    if argument.type == "argument" and argument.parent.parent.parent == node
                )

    def named_in(self, node: Node) -> set[str]:
        """The functions of this file that `node` mentions."""
        return {text(leaf) for leaf in walk(node) if leaf.type == "identifier"} & self.functions.keys()

    def keys_of(self, function: str, *, deep: bool = True) -> dict[str, bool]:
        """The keys of the map literals that `function` writes, itself or (`deep`) through the functions it mentions.

        The value says whether the key is always there.
        """
        found: dict[str, bool] = {}
        seen, ahead = set(), {function}
        while ahead:
            seen.add(name := ahead.pop())
            body = self.functions[name].child_by_field_name("body")
            assert body is not None
            for node in walk(body):
                if node.type == "pair":
                    found[literal(node.child_by_field_name("key"))] = node.parent.type != "if_element"
            if deep:
                ahead |= self.named_in(body) - seen
        return found

    def set_of(self, name: str) -> set[str]:
        """The texts of a constant set."""
        for node in walk(self.root):
            if node.type == "static_final_declaration" and text(node.named_children[0]) == name:
                return {literal(item) for item in node.named_children[1].named_children}
        raise LookupError(name)
