import pytest

from asr.spoken import cardinal, ordinal, year
from asr.text import english


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (105, "one hundred five"),
        (1000, "one thousand"),
        (380284, "three hundred eighty thousand two hundred eighty four"),
        (2_000_001, "two million one"),
        (10**12, "one trillion"),
        (
            10**15 - 1,
            " ".join(
                f"nine hundred ninety nine{scale}" for scale in (" trillion", " billion", " million", " thousand", "")
            ),
        ),
    ],
)
def test_cardinal(number: int, said: str) -> None:
    assert cardinal(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "first"),
        (2, "second"),
        (3, "third"),
        (5, "fifth"),
        (8, "eighth"),
        (9, "ninth"),
        (12, "twelfth"),
        (20, "twentieth"),
        (21, "twenty first"),
        (100, "one hundredth"),
        (1000, "one thousandth"),
    ],
)
def test_ordinal(number: int, said: str) -> None:
    assert ordinal(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1066, "ten sixty six"),
        (1805, "eighteen oh five"),
        (1900, "nineteen hundred"),
        (2000, "two thousand"),
        (2009, "two thousand nine"),
        (2010, "twenty ten"),
        (2026, "twenty twenty six"),
        (2100, "two thousand one hundred"),
        (6439, "six thousand four hundred thirty nine"),
    ],
)
def test_year(number: int, said: str) -> None:
    assert year(number) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        # money
        ("I have $20.", "i have twenty dollars"),
        ("$1, $2.50, $0", "one dollar two dollars and fifty cents zero dollars"),
        ("$0.99, $1.01", "ninety nine cents one dollar and one cent"),
        ("£800 on his bankers; £0.50", "eight hundred pounds on his bankers fifty pence"),
        ("¥500, 5 €, €2", "five hundred yen five euros two euros"),
        ("$2.5 million, $5m", "two point five million dollars five million dollars"),
        ("five $20 notes", "five twenty dollars notes"),
        # years, decades, dates
        ("in 1969, by 2004", "in nineteen sixty nine by two thousand four"),
        ("the 1990s, the '90s and 1900's", "the nineteen nineties the nineties and nineteen hundreds"),
        ("1914–1918, 10-15 people", "nineteen fourteen to nineteen eighteen ten to fifteen people"),
        ("May 5, 1969; March 1933; July 4th", "may fifth nineteen sixty nine march nineteen thirty three july fourth"),
        # times
        ("5:30, 5:05, 5:00, 17:00", "five thirty five oh five five o'clock seventeen hundred"),
        ("5pm, 5 p.m., 10:30am, 10:00 a.m. sharp", "five p m five p m ten thirty a m ten a m sharp"),
        # numbers
        ("the 3rd, 21st, 16th-century", "the third twenty first sixteenth century"),
        ("2.5, .450, 0.5, 1.2.3", "two point five point four five zero zero point five one point two point three"),
        ("12,469 or 1,000,000 or 2000000", "twelve thousand four hundred sixty nine or one million or two million"),
        ("007; 555-1234", "zero zero seven five five five one two three four"),
        ("800-555-1234", "eight zero zero five five five one two three four"),
        ("5551234", "five five five one two three four"),
        ("1/2, 3/4, 2 1/2, 1½", "one half three quarters two and one half one and one half"),
        ("24/7, 9/11, 3:7, 1,2,3", "twenty four seven nine eleven three seven one two three"),
        ("-30 dB, 5 - 3", "minus thirty db five to three"),
        ("No. 5, #7, no. I think", "number five number seven no i think"),
        ("mp3, 3D, B2B", "mp three three d b two b"),
        ("٣ x²", "three x two"),
        # signs and units
        ("50%, 99.9%", "fifty percent ninety nine point nine percent"),
        ("20°C, 20 °F, 20°", "twenty degrees celsius twenty degrees fahrenheit twenty degrees"),
        ("10 km at 60mph, 1 kg, 6 ft", "ten kilometers at sixty miles per hour one kilogram six feet"),
        ("2+2=4, a@b.com, AT&T, &c.", "two plus two equals four a at b dot com at and t et cetera"),
        # abbreviations
        ("Mr. Smith, MRS SMITH and Dr. Who", "mister smith missus smith and doctor who"),
        ("St. John's on Main St.", "saint john's on main street"),
        ("Gen. Lee and General Lee; Gen z", "general lee and general lee gen z"),
        ("King Jr., etc.", "king junior et cetera"),
        ("World War II, Henry VIII, Part IV, IV", "world war two henry the eighth part four iv"),
    ],
)  # fmt: skip
def test_what_is_written_short_is_said_in_full(written: str, said: str) -> None:
    assert english(written) == said


@pytest.mark.parametrize(
    "written", ["9" * 5000, "1" * 5000 + "000", "1" + ",000" * 2000, "1." * 5000, "$" + "9" * 5000, "1:" * 5000]
)
def test_numbers_of_any_length_are_read(written: str) -> None:
    assert set(english(written)) <= set(" abcdefghijklmnopqrstuvwxyz")
