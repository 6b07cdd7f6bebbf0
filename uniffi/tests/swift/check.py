"""Says where a Swift file does not parse, by the grammar of tree-sitter. No compiler: types are not checked."""

import sys

import tree_sitter_swift
from tree_sitter import Language, Parser

# What UniFFI writes and this grammar does not know, each made blank at its length: an attribute of its own
# within `#if`, and a closure that gives the empty tuple.
UNKNOWN = {
    b"@_documentation(visibility: private)": b"",
    b"{ () }": b"{    }",
}

parser = Parser(Language(tree_sitter_swift.language()))
is_bad = False
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        source = file.read()
    for text, blank in UNKNOWN.items():
        source = source.replace(text, blank.ljust(len(text)))
    nodes = [parser.parse(source).root_node]
    while nodes:
        node = nodes.pop()
        if node.type == "ERROR" or node.is_missing:
            is_bad = True
            line = node.start_point[0] + 1
            print(f"{path}:{line}: {source[node.start_byte:node.start_byte + 80]!r}")
        elif node.has_error:
            nodes.extend(node.children)
sys.exit(is_bad)
