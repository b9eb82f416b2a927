"""The errors of a YAML parser in the words of those who write YAML: what it tripped over, and what to do. Pure."""

from ruamel.yaml.error import MarkedYAMLError, StringMark

_REMEDIES = (
    (r"found character '\t' that", "found a tab, expected spaces: YAML is indented with spaces only"),
    ("that cannot start any token", "quote text that begins with such a character"),
    ("mapping values are not allowed here", "quote text with a colon and a space in it, or begin a new line"),
    ("expected <block end>", "found an odd indentation, expected that of the lines that this one stands beside"),
    ("found undefined alias", "nothing before it has this anchor (`&name`)"),
    ("found another document", "this file has several (`---`): give each as a file of its own, with --config"),
    ("found unexpected end of stream", "what begins here is never closed"),
    ("expected ',' or", "a list or mapping that begins before it is not closed, or lacks a comma"),
)
_NEVER_CLOSED = "found unexpected end of stream"


def explained(error: MarkedYAMLError) -> tuple[StringMark | None, str]:
    """Return where it is, and what to do about it."""
    problem = str(error.problem or error.context).removeprefix("but ")
    mark = error.problem_mark or error.context_mark
    if _NEVER_CLOSED in problem:  # at the end of the file: the beginning says more
        mark = error.context_mark or mark
    remedy = next((remedy for part, remedy in _REMEDIES if part in problem), "")
    if remedy.startswith("found"):
        return mark, remedy
    began = error.context_mark
    if "expected ',' or" in problem and began:
        remedy += f" (line {began.line + 1}, column {began.column + 1})"
    return mark, f"{problem}; {remedy}" if remedy else problem
