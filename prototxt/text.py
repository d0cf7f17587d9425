"""Writing Caffe's text format with a reason above a value; no Caffe, no protobuf.

A message is a dict: a nested dict is a message, a list repeats its field, `Enum` is written without quotes, and
`because(value, reason)` puts the reason as a comment on the line above.
"""

from dataclasses import dataclass


class Enum(str):
    """A name of an enumeration (MAX, TEST, ...)."""


@dataclass(frozen=True)
class Because:
    value: object
    reason: str


def because(value, reason):
    return Because(value, reason)


def render(message, indent=0):
    """The message as text, one field a line; a message of numbers alone stays on one line."""
    pad = "  " * indent
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Because):
                lines += [f"{pad}# {line}" for line in item.reason.split("\n")]
                item = item.value
            if not isinstance(item, dict):
                lines.append(f"{pad}{name}: {_scalar(item)}")
            elif any(isinstance(part, (dict, list, Because)) for part in item.values()) or len(item) > 3:
                lines += [f"{pad}{name} {{", render(item, indent + 1), f"{pad}}}"]
            else:
                fields = " ".join(f"{key}: {_scalar(part)}" for key, part in item.items())
                lines.append(f"{pad}{name} {{ {fields} }}")
    return "\n".join(lines)


def _scalar(value):
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        quote = "'" if '"' in value else '"'
        escaped = value.replace("\\", "\\\\").replace(quote, "\\" + quote)
        return f"{quote}{escaped}{quote}"
    return repr(value)
