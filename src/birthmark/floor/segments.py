"""Names that can be one segment of a path or a URL, as they stand, and a file's name.

A name that begins with a dot is none: it would be hidden in a directory, and ``.`` and ``..`` mean other
places.  What certificates say for life is spelled with such names, so the rule is in one place.
"""

import re

__all__ = ["SEGMENT", "is_segment"]

SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}"
"""As a regular expression."""
_SEGMENT = re.compile(SEGMENT)


def is_segment(name: str) -> bool:
    """Return whether it is 1 to 64 of ``A-Z a-z 0-9 . _ -`` and does not begin with a dot."""
    return _SEGMENT.fullmatch(name) is not None
