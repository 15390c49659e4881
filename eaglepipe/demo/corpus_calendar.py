"""Facts about days, months and years of the proleptic Gregorian calendar, from `calendar` and `datetime`."""

import calendar
from datetime import date, timedelta
from random import Random

from eaglepipe.demo.corpus_types import Exchange, Source, listing, plural

YEARS = range(1583, 2400)
_DAYS_PER_YEAR = 24
_FIRST_HALF = ("January", "February", "March", "April", "May", "June")
MONTHS = (*_FIRST_HALF, "July", "August", "September", "October", "November", "December")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def spelled(day: date) -> str:
    """`14 March 1983`, in English whatever the locale."""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def weekday(day: date) -> str:
    """`Monday`, in English whatever the locale."""
    return WEEKDAYS[day.weekday()]


def _keys() -> list[str]:
    return sorted(key for year in YEARS for key in (str(year), *_months(year), *_days(year)))


def _months(year: int) -> list[str]:
    return [f"{year}-{month:02}" for month in range(1, 13)]


def _days(year: int) -> list[str]:
    """Some days of a year, spread over it and not the same in every year."""
    rng = Random(f"days of {year}")
    ordinals = rng.sample(range(365), _DAYS_PER_YEAR)
    return [(date(year, 1, 1) + timedelta(days=ordinal)).isoformat() for ordinal in ordinals]


def _exchanges(key: str, rng: Random) -> tuple[Exchange, ...]:
    parts = [int(part) for part in key.split("-")]
    if len(parts) == 1:
        return _about_year(parts[0], rng)
    if len(parts) == 2:
        return _about_month(parts[0], parts[1], rng)
    day = date(*parts)
    return (_weekday(day, rng), _notations(day, rng), _shifted(day, rng), _distance(day, rng))


def _weekday(day: date, rng: Random) -> Exchange:
    position, year_days = day.timetuple().tm_yday, 365 + calendar.isleap(day.year)
    question = rng.choice(
        (
            f"What day of the week is {spelled(day)}?",
            f"Which weekday is {spelled(day)}?",
            f"On what day does {spelled(day)} fall?",
            f"Tell me about {spelled(day)}.",
        )
    )
    return Exchange(
        question=question,
        sentences=(
            rng.choice((f"{spelled(day)} is a {weekday(day)}.", f"{spelled(day)} falls on a {weekday(day)}.")),
            f"It is day {position} of {day.year}, in ISO week {day.isocalendar().week}, "
            f"and {plural(year_days - position, 'day')} of the year are left after it.",
        ),
    )


def _notations(day: date, rng: Random) -> Exchange:
    iso = day.isocalendar()
    question = rng.choice(
        (
            f"How can I write {spelled(day)}?",
            f"Which notations are there for {spelled(day)}?",
            f"What is {spelled(day)} in ISO 8601?",
        )
    )
    return Exchange(
        question=question,
        sentences=(
            f"In ISO 8601, {spelled(day)} is {day.isoformat()}.",
            f"As an ordinal date it is {day.year}-{day.timetuple().tm_yday:03}, "
            f"and as a week date {iso.year}-W{iso.week:02}-{iso.weekday}.",
            f"Americans write {day.month}/{day.day}/{day.year}, and Python counts it as day number {day.toordinal()}.",
        ),
    )


def _shifted(day: date, rng: Random) -> Exchange:
    days = rng.choice((7, 10, 14, 30, 45, 60, 90, 100))
    later, earlier = day + timedelta(days=days), day - timedelta(days=days)
    question = rng.choice(
        (
            f"What date is {days} days after {spelled(day)}?",
            f"Add {days} days to {spelled(day)}.",
            f"Which day comes {days} days after {spelled(day)}?",
        )
    )
    return Exchange(
        question=question,
        sentences=(
            f"{days} days after {spelled(day)} is {spelled(later)}, a {weekday(later)}.",
            f"{days} days before it is {spelled(earlier)}, a {weekday(earlier)}.",
            f"{spelled(day)} itself is a {weekday(day)}.",
        ),
    )


def _distance(day: date, rng: Random) -> Exchange:
    start, end = date(day.year, 1, 1), date(day.year, 12, 31)
    question = rng.choice(
        (
            f"How far into its year is {spelled(day)}?",
            f"How many days lie between New Year and {spelled(day)}?",
            f"In which quarter is {spelled(day)}?",
        )
    )
    weeks, days = divmod((day - start).days, 7)
    return Exchange(
        question=question,
        sentences=(
            f"{spelled(day)} is in quarter {(day.month + 2) // 3} of {day.year}.",
            f"It lies {plural((day - start).days, 'day')} after 1 January, which is {plural(weeks, 'week')} "
            f"and {plural(days, 'day')}, and {plural((end - day).days, 'day')} before 31 December.",
        ),
    )


def _about_month(year: int, month: int, rng: Random) -> tuple[Exchange, ...]:
    name, (first, length) = f"{MONTHS[month - 1]} {year}", calendar.monthrange(year, month)
    last = WEEKDAYS[(first + length - 1) % 7]
    chosen = rng.randrange(7)
    dates = [str(day) for day in range(1, length + 1) if (first + day - 1) % 7 == chosen]
    shape = Exchange(
        question=rng.choice((f"How long is {name}?", f"How many days has {name}?", f"Describe the month of {name}.")),
        sentences=(
            f"{name} has {length} days.",
            f"It begins on a {WEEKDAYS[first]} and ends on a {last}, and touches "
            f"{len(calendar.Calendar().monthdayscalendar(year, month))} calendar weeks that begin on Monday.",
        ),
    )
    fall = Exchange(
        question=rng.choice(
            (f"Which days of {name} are {WEEKDAYS[chosen]}s?", f"When are the {WEEKDAYS[chosen]}s in {name}?")
        ),
        sentences=(
            f"The {WEEKDAYS[chosen]}s in {name} fall on {listing(dates)}.",
            f"That makes {len(dates)} of them, in a month of {length} days that begins on a {WEEKDAYS[first]}.",
        ),
    )
    return (shape, fall)


def _about_year(year: int, rng: Random) -> tuple[Exchange, ...]:
    leap, first, last = calendar.isleap(year), date(year, 1, 1), date(year, 12, 31)
    weeks = date(year, 12, 28).isocalendar().week
    before, after = (next(y for y in years if calendar.isleap(y)) for years in _around(year))
    kind = "a leap year" if leap else "a common year"
    return (
        Exchange(
            question=rng.choice(
                (f"Is {year} a leap year?", f"How many days has {year}?", f"What kind of year is {year}?")
            ),
            sentences=(
                f"{year} is {kind} of {365 + leap} days.",
                f"The leap year before it is {before}, and the one after it is {after}.",
                f"February {year} has {28 + leap} days.",
            ),
        ),
        Exchange(
            question=rng.choice((f"On which day does {year} begin?", f"How many weeks has {year}?")),
            sentences=(
                f"{year} begins on a {weekday(first)} and ends on a {weekday(last)}.",
                f"It has {weeks} ISO weeks, and 1 January belongs to week {first.isocalendar().week} "
                f"of {first.isocalendar().year}.",
            ),
        ),
    )


def _around(year: int) -> tuple[range, range]:
    return range(year - 1, year - 9, -1), range(year + 1, year + 9)


SOURCE = Source(
    name="calendar",
    system_prompt="You answer questions about dates and the calendar.",
    keys=_keys,
    exchanges=_exchanges,
)
