"""Class labels from text: a name of the model's classes, or a number."""

from collections import Counter
from difflib import get_close_matches

from lighten_service.worker.datasets.request import Request


class ClassIndex:
    """Numbers of classes by name."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._numbers = {name: number for number, name in enumerate(request.class_names)}
        counts = Counter(request.class_names)
        self._ambiguous = {name for name, count in counts.items() if count > 1}

    def number(self, text: str, where: str) -> int:
        """Return the class that ``text`` means; a name goes before a number.

        Args:
            where: what carries the label, for the message.

        Raises:
            InvalidArgument: UNKNOWN_CLASS with the nearest name, or LABEL_OUT_OF_RANGE.
        """
        if text in self._ambiguous:
            raise self._request.refuse(
                "UNKNOWN_CLASS",
                f"{where}: '{text}' stands more than once in model.class_names; use its number",
            )
        if text in self._numbers:
            return self._numbers[text]
        if text.isascii() and text.isdigit() and len(text) < 10:
            return self._in_range(int(text), where)
        raise self._request.refuse("UNKNOWN_CLASS", f"{where}: {self._unknown(text)}")

    def _in_range(self, number: int, where: str) -> int:
        classes = len(self._request.class_names)
        if classes and number >= classes:
            raise self._request.refuse(
                "LABEL_OUT_OF_RANGE",
                f"{where}: class {number} of {classes}; labels go from 0 to {classes - 1}",
            )
        return number

    def _unknown(self, text: str) -> str:
        if not self._numbers:
            return f"'{text}' is no class number; name it by number, or set model.class_names"
        near = get_close_matches(text, self._numbers, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"'{text}' is neither a class number nor in model.class_names{hint}"
