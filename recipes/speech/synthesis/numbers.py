"""Numbers in words, as texts to say."""

from __future__ import annotations

# fmt: off
ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """An English number from 0 to 999, without `and`.

    Example::

        >>> [in_words(number) for number in (0, 14, 40, 342)]
        ['zero', 'fourteen', 'forty', 'three hundred forty two']
    """
    hundreds, rest = divmod(number, 100)
    words = [ONES[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(TENS[rest // 10 - 2])
        rest %= 10
        if rest:
            words.append(ONES[rest])
    elif rest or not hundreds:
        words.append(ONES[rest])
    return " ".join(words)
