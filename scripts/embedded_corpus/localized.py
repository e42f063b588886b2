"""Fillers from maintained libraries: Babel (CLDR) for names, dates, units and money, num2words for numbers."""

import datetime

from babel import Locale
from babel.dates import format_date, format_time, get_day_names, get_month_names
from babel.numbers import format_decimal, get_currency_name
from babel.units import format_unit
from german import GermanCountry, GermanNoun
from num2words import num2words
from template import Filler

_DE, _EN = Locale("de"), Locale("en")


def _number(value: int) -> Filler:
    return Filler(num2words(value, lang="de"), num2words(value, lang="en"))


def _time(hour: int, minute: int) -> Filler:
    time = datetime.time(hour, minute)
    # CLDR puts a narrow no-break space before AM and PM.
    english = format_time(time, "short", locale=_EN).replace("\u202f", " ")
    return Filler(format_time(time, "H:mm", locale=_DE) + " Uhr", english)


def _date(month: int, day: int) -> Filler:
    date = datetime.date(2024, month, day)
    return Filler(format_date(date, "d. MMMM", locale=_DE), format_date(date, "MMMM d", locale=_EN))


def _unit(value: int, unit: str) -> Filler:
    german, english = (format_unit(value, unit, length="long", locale=locale) for locale in (_DE, _EN))
    return Filler(german, english)


def _currency(code: str) -> Filler:
    german = get_currency_name(code, count=2, locale=_DE)
    if " " in german and code != "CHF":
        # CLDR writes the adjective as in a list, "Schwedische Kronen"; "Schweizer" keeps its capital.
        german = german[0].lower() + german[1:]
    return Filler(german, get_currency_name(code, count=2, locale=_EN))


def _price(value: float, number_format: str = "0.00") -> Filler:
    german, english = (format_decimal(value, format=number_format, locale=locale) for locale in (_DE, _EN))
    return Filler(f"{german} {EUROS.de}", f"{english} {EUROS.en}")


_ARTICLES = {"CH": "f", "TR": "f", "UA": "f", "SK": "f", "IR": "m", "IQ": "m", "NL": "p", "US": "p"}
_ENGLISH_THE = {"NL", "US"}
# Everyday names where CLDR's are formal or recent.
_SHORT_NAMES = {"US": Filler("USA", "United States"), "TR": Filler("Türkei", "Turkey")}


def _country(code: str) -> Filler:
    names = _SHORT_NAMES.get(code) or Filler(_DE.territories[code], _EN.territories[code])
    noun = GermanNoun(names.de, _ARTICLES.get(code, "n"))
    english = f"the {names.en}" if code in _ENGLISH_THE else names.en
    return Filler(GermanCountry(noun, has_article=code in _ARTICLES), english)


NUMBERS = [_number(value) for value in (*range(2, 21), 25, 30, 35, 40, 50, 60, 70, 80, 90)]
SMALL_NUMBERS = [_number(value) for value in range(2, 13)]
AGES = NUMBERS[16:]
FIGURES = [Filler(str(value), str(value)) for value in range(2, 31)]
SIZES = [Filler(str(value), str(value)) for value in range(36, 48, 2)]

MONTHS = [
    Filler(get_month_names("wide", locale=_DE)[month], get_month_names("wide", locale=_EN)[month])
    for month in range(1, 13)
]
WEEKDAYS = [Filler(get_day_names("wide", locale=_DE)[day], get_day_names("wide", locale=_EN)[day]) for day in range(7)]
MORNING_TIMES = [_time(hour, minute) for hour in range(7, 12) for minute in (0, 15, 30, 45)]
EVENING_TIMES = [_time(hour, minute) for hour in range(15, 21) for minute in (0, 15, 30, 45)]
TIMES = MORNING_TIMES + EVENING_TIMES
DATES = [_date(month, day) for month in range(1, 13) for day in range(1, 29)]

EUROS = _currency("EUR")
CURRENCIES = [EUROS, *map(_currency, ("USD", "CHF", "GBP", "JPY", "SEK", "NOK", "DKK", "CAD", "AUD", "MXN", "INR"))]
PRICES = [_price(euros + 0.5) for euros in (3, 5, 8, 12, 15, 19, 24, 29, 35, 49, 59, 79)]
MONTHLY_RENTS = [_price(value, "#,##0") for value in range(400, 1200, 100)]

DEGREES = [_unit(value, "temperature-celsius") for value in range(2, 31)]
THOUSANDS = [
    Filler(*(format_decimal(value, locale=locale) for locale in (_DE, _EN))) for value in range(1000, 10_000, 1000)
]
KILOMETERS = [_unit(value, "length-kilometer") for value in range(100, 550, 50)]
KILOGRAMS = [_unit(value, "mass-kilogram") for value in range(2, 10)]
GRAMS = [_unit(value, "mass-gram") for value in range(100, 550, 50)]

_COUNTRY_CODES = (
    "DE AT CH FR IT ES PT NL BE DK SE NO FI IS IE GR TR PL CZ SK HU RO BG HR UA US CA MX BR AR CL PE CU "
    "EG MA KE ZA IN CN JP TH VN ID AU NZ IR IQ"
)
COUNTRIES = [_country(code) for code in _COUNTRY_CODES.split()]
_LANGUAGE_CODES = "de en fr es it pt nl da sv no fi pl cs hu el tr ru ar ja zh ko hi"
LANGUAGES = [Filler(_DE.languages[code], _EN.languages[code]) for code in _LANGUAGE_CODES.split()]
