"""Facts about days, months and years of the proleptic Gregorian calendar, from `calendar` and `datetime`."""

import calendar
from datetime import date, timedelta
from random import Random

from eaglepipe.demo.corpus_types import Exchange, Source, listing, plural

YEARS = range(1583, 2400)
_FIRST_HALF = ("January", "February", "March", "April", "May", "June")
MONTHS = (*_FIRST_HALF, "July", "August", "September", "October", "November", "December")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAYS_PER_YEAR = 24
_OFFSET_DAYS = (7, 10, 14, 30, 45, 60, 90, 100)
_QUESTIONS = {
    "weekday": (
        "What day of the week is {}?",
        "Which weekday is {}?",
        "On what day does {} fall?",
        "Tell me about {}.",
    ),
    "notations": ("How can I write {}?", "Which notations are there for {}?", "What is {} in ISO 8601?"),
    "offset": (
        "What date is {days} days after {}?",
        "Add {days} days to {}.",
        "Which day comes {days} days after {}?",
    ),
    "month": ("How long is {}?", "How many days has {}?", "Describe the month of {}."),
    "weekdays of a month": ("Which days of {} are {weekday}s?", "When are the {weekday}s in {}?"),
    "year": ("Is {} a leap year?", "How many days has {}?", "What kind of year is {}?"),
    "weeks of a year": ("On which day does {} begin?", "How many weeks has {}?"),
}


def spelled(day: date) -> str:
    """Return `14 March 1983`, in English whatever the locale."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def weekday(day: date) -> str:
    """Return `Monday`, in English whatever the locale."""
    return WEEKDAYS[day.weekday()]


def _keys() -> list[str]:
    return sorted(key for year in YEARS for key in (str(year), *_months(year), *_days(year)))


def _months(year: int) -> list[str]:
    return [f"{year}-{month:02}" for month in range(1, 13)]


def _days(year: int) -> list[str]:
    """Some days of a year, spread over it and not the same in every year."""
    ordinals = Random(f"days of {year}").sample(range(365), _DAYS_PER_YEAR)
    return [(date(year, 1, 1) + timedelta(days=ordinal)).isoformat() for ordinal in ordinals]


def _exchanges(key: str, rng: Random) -> tuple[Exchange, ...]:
    parts = [int(part) for part in key.split("-")]
    if len(parts) == 1:
        return (_year(parts[0], rng), _weeks_of_year(parts[0], rng))
    if len(parts) == 2:
        return _about_month(parts[0], parts[1], rng)
    day = date(*parts)
    return (_weekday(day, rng), _notations(day, rng), _offset(day, rng))


def _question(kind: str, label: object, rng: Random, **parts: object) -> str:
    return rng.choice(_QUESTIONS[kind]).format(label, **parts)


def _weekday(day: date, rng: Random) -> Exchange:
    position, year_days = day.timetuple().tm_yday, 365 + calendar.isleap(day.year)
    return Exchange(
        question=_question("weekday", spelled(day), rng),
        sentences=(
            rng.choice((f"{spelled(day)} is a {weekday(day)}.", f"{spelled(day)} falls on a {weekday(day)}.")),
            f"It is day {position} of {day.year}, in ISO week {day.isocalendar().week}, "
            f"and {plural(year_days - position, 'day')} of the year are left after it.",
        ),
    )


def _notations(day: date, rng: Random) -> Exchange:
    iso = day.isocalendar()
    return Exchange(
        question=_question("notations", spelled(day), rng),
        sentences=(
            f"In ISO 8601, {spelled(day)} is {day.isoformat()}.",
            f"As an ordinal date it is {day.year}-{day.timetuple().tm_yday:03}, "
            f"and as a week date {iso.year}-W{iso.week:02}-{iso.weekday}.",
            f"Americans write {day.month}/{day.day}/{day.year}, and Python counts it as day number {day.toordinal()}.",
        ),
    )


def _offset(day: date, rng: Random) -> Exchange:
    days = rng.choice(_OFFSET_DAYS)
    later, earlier = day + timedelta(days=days), day - timedelta(days=days)
    return Exchange(
        question=_question("offset", spelled(day), rng, days=days),
        sentences=(
            f"{days} days after {spelled(day)} is {spelled(later)}, a {weekday(later)}.",
            f"{days} days before it is {spelled(earlier)}, a {weekday(earlier)}.",
            f"{spelled(day)} itself is a {weekday(day)}.",
        ),
    )


def _about_month(year: int, month: int, rng: Random) -> tuple[Exchange, ...]:
    name, (first, length) = f"{MONTHS[month - 1]} {year}", calendar.monthrange(year, month)
    last = WEEKDAYS[(first + length - 1) % 7]
    chosen = rng.randrange(7)
    dates = [str(day) for day in range(1, length + 1) if (first + day - 1) % 7 == chosen]
    shape = Exchange(
        question=_question("month", name, rng),
        sentences=(
            f"{name} has {length} days.",
            f"It begins on a {WEEKDAYS[first]} and ends on a {last}, and touches "
            f"{len(calendar.Calendar().monthdayscalendar(year, month))} calendar weeks that begin on Monday.",
        ),
    )
    fall = Exchange(
        question=_question("weekdays of a month", name, rng, weekday=WEEKDAYS[chosen]),
        sentences=(
            f"The {WEEKDAYS[chosen]}s in {name} fall on {listing(dates)}.",
            f"That makes {len(dates)} of them, in a month of {length} days that begins on a {WEEKDAYS[first]}.",
        ),
    )
    return (shape, fall)


def _year(year: int, rng: Random) -> Exchange:
    leap = calendar.isleap(year)
    before = next(other for other in range(year - 1, year - 9, -1) if calendar.isleap(other))
    after = next(other for other in range(year + 1, year + 9) if calendar.isleap(other))
    return Exchange(
        question=_question("year", year, rng),
        sentences=(
            f"{year} is {'a leap year' if leap else 'a common year'} of {365 + leap} days.",
            f"The leap year before it is {before}, and the one after it is {after}.",
            f"February {year} has {28 + leap} days.",
        ),
    )


def _weeks_of_year(year: int, rng: Random) -> Exchange:
    first, last = date(year, 1, 1), date(year, 12, 31)
    return Exchange(
        question=_question("weeks of a year", year, rng),
        sentences=(
            f"{year} begins on a {weekday(first)} and ends on a {weekday(last)}.",
            f"It has {date(year, 12, 28).isocalendar().week} ISO weeks, and 1 January belongs to "
            f"week {first.isocalendar().week} of {first.isocalendar().year}.",
        ),
    )


SOURCE = Source(
    name="calendar",
    system_prompt="You answer questions about dates and the calendar.",
    keys=_keys,
    exchanges=_exchanges,
)
