"""Instructions to token ids: a template, a tokenizer from the bytes of its `tokenizer.json`, and fixed ids at the ends.

The end matters as much as the words: OpenVLA was trained on prompts whose last token is the empty word (id 29871), and
the state of that token is what the first action is read from.
"""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from vla.core.errors import CorruptFileError

OPENVLA_TEMPLATE = "In: What action should the robot take to {}?\nOut:"
OPENVLA_BOS, OPENVLA_STOP, OPENVLA_SUFFIX = 1, 2, (29871,)


class Prompt:
    """Token ids of instructions, each tokenised once.

    Attributes:
        stop_id: of the token after the action slots.
        vocabulary: the smallest embedding table that holds every id, in rows.
    """

    def __init__(
        self,
        *,
        tokenizer: bytes,
        template: str = OPENVLA_TEMPLATE,
        bos_id: int = OPENVLA_BOS,
        suffix: Sequence[int] = OPENVLA_SUFFIX,
        stop_id: int = OPENVLA_STOP,
        lower: bool = True,
    ) -> None:
        """Builds the prompt; the defaults are OpenVLA's.

        Args:
            tokenizer: the content of a `tokenizer.json`.
            template: with one `{}` for the instruction.
            bos_id: of the first token, put there whatever the tokenizer would add itself.
            suffix: ids at the end, appended unless the words end in them already.
            stop_id: see the class.
            lower: whether instructions are lower-cased.

        Raises:
            CorruptFileError: the bytes are no tokenizer.
        """
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        except Exception as error:  # the library raises nothing more precise
            raise CorruptFileError(f"tokenizer.json: not a tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._template, self._lower = template, lower
        self._bos_id, self._suffix, self.stop_id = bos_id, list(suffix), stop_id
        self.vocabulary = 1 + max(*self._tokenizer.get_vocab().values(), bos_id, stop_id, *suffix)
        self._known: dict[str, list[int]] = {}

    def ids(self, instruction: str) -> list[int]:
        """The ids of the whole prompt: BOS, words, suffix. The stop token comes after the actions, so not here."""
        if instruction not in self._known:
            text = self._template.format(instruction.lower() if self._lower else instruction)
            words = self._tokenizer.encode(text, add_special_tokens=False).ids
            ended = not self._suffix or words[-len(self._suffix) :] == self._suffix
            self._known[instruction] = [self._bos_id, *words, *([] if ended else self._suffix)]
        return self._known[instruction]


def byte_tokenizer() -> bytes:
    """A `tokenizer.json` with one token per byte (ids 3 to 258): for networks that are trained from nothing."""
    alphabet = {character: 3 + i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    plain = {
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": alphabet, "merges": []},
    }
    return json.dumps(plain).encode()
