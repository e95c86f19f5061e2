"""Phrases full of numbers, in upper-case words: cardinals, dates, times, prices, telephone numbers, measures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# fmt: off
_ONES = (
    "ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN", "ELEVEN", "TWELVE",
    "THIRTEEN", "FOURTEEN", "FIFTEEN", "SIXTEEN", "SEVENTEEN", "EIGHTEEN", "NINETEEN",
)
_TENS = (
    "_", "_", "TWENTY", "THIRTY", "FORTY", "FIFTY", "SIXTY", "SEVENTY", "EIGHTY", "NINETY",
)
_ORDINAL_ONES = (
    "_", "FIRST", "SECOND", "THIRD", "FOURTH", "FIFTH", "SIXTH", "SEVENTH", "EIGHTH", "NINTH", "TENTH",
    "ELEVENTH", "TWELFTH", "THIRTEENTH", "FOURTEENTH", "FIFTEENTH", "SIXTEENTH", "SEVENTEENTH", "EIGHTEENTH",
    "NINETEENTH",
)
_MONTHS = (
    "JANUARY", "FEBRUARY", "MARCH", "APRIL", "MAY", "JUNE", "JULY", "AUGUST", "SEPTEMBER", "OCTOBER",
    "NOVEMBER", "DECEMBER",
)
_DAYS = (
    "MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY", "SUNDAY",
)
# fmt: on
_MOST_WORDS = 13  # of a joined phrase
_JOINTS = ("AND", "OR", "THEN")
_TIMES_OF_DAY = ("IN THE MORNING", "IN THE AFTERNOON", "IN THE EVENING", "AT NIGHT", "", "")
# fmt: off
_UNITS = (
    "METRES", "MILES", "MINUTES", "HOURS", "POUNDS", "GRAMS", "DEGREES", "PERCENT", "PEOPLE", "PAGES",
)
# fmt: on


def cardinal(number: int) -> str:
    """``number`` in words, 0 to 999,999,999, with AND after the hundreds."""
    if not 0 <= number < 10**9:
        raise ValueError(f"number: expected 0 to 999999999, found {number}")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ONES[hundreds]} HUNDRED" + (f" AND {cardinal(rest)}" if rest else "")
    for size, name in ((10**6, "MILLION"), (10**3, "THOUSAND")):
        if number >= size:
            head, rest = divmod(number, size)
            joint = " AND " if 0 < rest < 100 else " "
            return f"{cardinal(head)} {name}" + (joint + cardinal(rest) if rest else "")
    raise AssertionError("unreachable")


def ordinal(number: int) -> str:
    """The ordinal of 1 to 99 in words."""
    if not 1 <= number < 100:
        raise ValueError(f"number: expected 1 to 99, found {number}")
    if number < 20:
        return _ORDINAL_ONES[number]
    tens, ones = divmod(number, 10)
    return f"{_TENS[tens]} {_ORDINAL_ONES[ones]}" if ones else _TENS[tens][:-1] + "IETH"


def year(number: int) -> str:
    """A year as it is spoken: 1987 NINETEEN EIGHTY SEVEN, 2004 TWO THOUSAND AND FOUR, 1905 NINETEEN OH FIVE."""
    century, rest = divmod(number, 100)
    if 2000 <= number < 2010:
        return "TWO THOUSAND" + (f" AND {_ONES[rest]}" if rest else "")
    if rest == 0:
        return f"{cardinal(century)} HUNDRED"
    return f"{cardinal(century)} {'OH ' if rest < 10 else ''}{cardinal(rest)}"


def _number(generator: np.random.Generator) -> str:
    digits = int(generator.integers(2, 8))
    number = int(generator.integers(10 ** (digits - 1), 10**digits))
    if digits > 3 and generator.random() < 0.5:  # round ones are as common as odd ones
        number -= number % 10 ** int(generator.integers(1, digits - 1))
    return cardinal(number)


def _date(generator: np.random.Generator) -> str:
    month, day = _MONTHS[generator.integers(12)], ordinal(int(generator.integers(1, 32)))
    form = generator.integers(4)
    if form == 0:
        return f"THE {day} OF {month}"
    if form == 1:
        return f"{_DAYS[generator.integers(7)]} {month} THE {day}"
    spoken_year = year(int(generator.integers(1900, 2030)))
    return f"THE {day} OF {month} {spoken_year}" if form == 2 else f"{month} {day} {spoken_year}"


def _time(generator: np.random.Generator) -> str:
    hour, later = _ONES[generator.integers(1, 13)], _TIMES_OF_DAY[generator.integers(len(_TIMES_OF_DAY))]
    form = generator.integers(4)
    if form == 0:
        text = f"{hour} O'CLOCK"
    elif form == 1:
        text = f"{('HALF PAST', 'QUARTER PAST', 'QUARTER TO')[generator.integers(3)]} {hour}"
    elif form == 2:
        text = f"{cardinal(int(generator.integers(2, 30)))} MINUTES {('PAST', 'TO')[generator.integers(2)]} {hour}"
    else:
        minute = int(generator.integers(1, 60))
        text = f"{hour} {'OH ' if minute < 10 else ''}{cardinal(minute)}"
    return f"{text} {later}".strip()


def _price(generator: np.random.Generator) -> str:
    whole, cents = int(generator.integers(1, 10 ** int(generator.integers(1, 5)))), int(generator.integers(1, 100))
    currency, part = (("DOLLAR", "CENT"), ("EURO", "CENT"), ("POUND", "PENNY"))[generator.integers(3)]
    text = f"{cardinal(whole)} {currency}" + ("S" if whole != 1 else "")
    form = generator.integers(3)
    if form == 0 or whole > 999:
        return text
    if form == 1:
        return f"{text} {cardinal(cents)}"
    parts = part if cents == 1 else "PENCE" if part == "PENNY" else "CENTS"
    return f"{text} AND {cardinal(cents)} {parts}"


def _telephone(generator: np.random.Generator) -> str:
    words: list[str] = []
    for digit in generator.integers(0, 10, size=int(generator.integers(5, 10))):
        word = "OH" if digit == 0 else _ONES[digit]
        if words and words[-1] == word and generator.random() < 0.4:
            words[-1] = f"DOUBLE {word}"
        else:
            words.append(word)
    return " ".join(words)


def _measure(generator: np.random.Generator) -> str:
    number = cardinal(int(generator.integers(2, 10 ** int(generator.integers(1, 4)) + 2)))
    unit = _UNITS[generator.integers(len(_UNITS))]
    if generator.random() < 0.5:
        return f"{number} POINT {_ONES[generator.integers(10)]} {unit}"
    return f"{number} {unit}"


_KINDS: tuple[Callable[[np.random.Generator], str], ...] = (_number, _date, _time, _price, _telephone, _measure)


def phrase(generator: np.random.Generator) -> str:
    """A number, date, time, price, telephone number or measure, drawn evenly; one in five has another behind it."""
    first = _KINDS[generator.integers(len(_KINDS))](generator)
    if generator.random() >= 0.2:
        return first
    second = _KINDS[generator.integers(len(_KINDS))](generator)
    both = f"{first} {_JOINTS[generator.integers(len(_JOINTS))]} {second}"
    return both if len(both.split()) <= _MOST_WORDS else first
