import pytest

from asrkd.evaluation import wer
from asrkd.evaluation.normalise import NORMALISERS, librispeech, normaliser, whisper_english


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  stop—now.", "DON'T STOP NOW"),
        ("it’s the dogs’ well-known 'trick'", "IT'S THE DOGS WELL KNOWN TRICK"),
        ("Café déjà-vu, naïve!", "CAFE DEJA VU NAIVE"),
        ("rock 'n' roll o'clock", "ROCK N ROLL O'CLOCK"),
        ("snake_case 42", "SNAKE CASE 42"),
        ("", ""),
        ("...", ""),
    ],
)
def test_librispeech(text, expected):
    assert librispeech(text) == expected
    assert librispeech(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("twenty-five dollars and fifty cents", "$25.50"),
        ("one hundred and one", "101"),
        ("nineteen eighty four", "1984"),
        ("I'm gonna; won't, can't, they'd've", "i am going to will not can not they would have"),
        ("The colour of the aluminium centre", "the color of the aluminum center"),
        ("Mr. Smith [laughs] said (quietly) hmm yes", "mister smith said yes"),
        # A known oddity of the published normaliser: a lone "o" is read as the number.
        ("O'Brien", "0 brien"),
        ("three point one four percent", "3.14%"),
        ("", ""),
    ],
)
def test_whisper_english(text, expected):
    assert whisper_english(text) == expected


def test_score_applies_the_named_normaliser_to_both_sides():
    references, hypotheses = {"u": "Twenty-five, don't"}, {"u": "25 DO NOT"}
    assert wer.score(references, hypotheses).errors == 3
    assert wer.score(references, hypotheses, "whisper-english").errors == 0
    assert wer.score(references, {"u": "twenty five don’t"}, "librispeech").errors == 0


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="expected one of none, librispeech, whisper-english, found 'x'"):
        normaliser("x")
    assert all(normaliser(name) is f for name, f in NORMALISERS.items())
