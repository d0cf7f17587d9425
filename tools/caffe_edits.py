"""Our edits to Caffe's source, each small, named and with its reason.

An edit replaces one piece of text by another in one file, and must find the old text exactly once: a source that is
not the one this was written for stops the build instead of being built half mended.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    name: str
    reason: str
    file: str
    old: str
    new: str


EDITS = (
    Edit(
        name="protobuf-total-bytes-limit",
        reason="protobuf 3.21 takes the limit alone; the second argument (a warning threshold) was removed.",
        file="src/caffe/util/io.cpp",
        old="coded_input->SetTotalBytesLimit(kProtoReadBytesLimit, 536870912);",
        new="coded_input->SetTotalBytesLimit(kProtoReadBytesLimit);",
    ),
)


def apply_edits(source, edits=EDITS):
    """Apply `edits` to the Caffe source tree `source` (a path).

    Raises ValueError naming the edit when its old text does not stand exactly once in its file; no file has been
    written by then.
    """
    texts = {}
    for edit in edits:
        path = Path(source) / edit.file
        if not path.is_file():
            raise ValueError(f"edit {edit.name!r}: {path} does not exist; this is not the Caffe source it was written for")
        text = texts.get(path) or path.read_text()
        count = text.count(edit.old)
        if count != 1:
            raise ValueError(f"edit {edit.name!r} must apply exactly once in {path}, but its text was found {count} times")
        texts[path] = text.replace(edit.old, edit.new)
    for path, text in texts.items():
        path.write_text(text)
