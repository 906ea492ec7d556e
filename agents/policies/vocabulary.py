"""Text as ids over a closed set of symbols, either characters or words.

Padding and the end of an answer are different ids: a loss mask made from `id == pad` would otherwise drop the token
that stops an answer, and the model would never stop.
"""

from collections.abc import Iterable, Sequence

PAD, END = 0, 1
_FIRST = 2


class Vocabulary:
    """Ids of symbols; 0 is padding, 1 the end of an answer, the symbols follow in the order given."""

    def __init__(self, symbols: Iterable[str], *, words: bool = False) -> None:
        """Args:
        symbols: without repeats; single characters unless `words`.
        words: symbols are words, between spaces in the text.
        """
        self.symbols = tuple(symbols)
        self.words = words
        if len(set(self.symbols)) != len(self.symbols):
            raise ValueError("symbols has one twice")
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols, _FIRST)}

    def __len__(self) -> int:
        return len(self.symbols) + _FIRST

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without an end. Raises ValueError for a symbol that is not in the set."""
        parts = text.split() if self.words else list(text)
        if unknown := next((part for part in parts if part not in self._ids), None):
            raise ValueError(f"text has {unknown!r}, expected only {' '.join(self.symbols)}")
        return [self._ids[part] for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first end; padding is left out."""
        kept: list[str] = []
        for each in ids:
            if each == END:
                break
            if each != PAD:
                kept.append(self.symbols[each - _FIRST])
        return (" " if self.words else "").join(kept)
