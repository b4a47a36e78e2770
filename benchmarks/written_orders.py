"""Orders in free text, and their content as JSON with a list: a generated data set of `ten_sets.py`.

The rule: `items` has the ordered things in the order of the text, each with its name in the singular, its count as a number and, where the
text gives one, its colour. A thing that is taken back is left out, and a corrected count replaces the first. `name` is the customer, and
`day` the day of delivery as one of the seven in English; both are left out where the text has none.
"""

from __future__ import annotations

import json
import random
from typing import Any

THINGS = {
    "pencil": "pencils", "notebook": "notebooks", "box": "boxes", "lamp": "lamps", "shelf": "shelves", "desk": "desks",
    "office chair": "office chairs",
    "mug": "mugs", "water bottle": "water bottles", "USB cable": "USB cables", "keyboard": "keyboards", "battery": "batteries",
    "knife": "knives",
    "tray": "trays", "folder": "folders", "brush": "brushes", "towel": "towels", "curtain": "curtains", "rug": "rugs",
    "wall clock": "wall clocks",
    "picture frame": "picture frames", "vase": "vases", "candle": "candles", "roll of tape": "rolls of tape",
    "dictionary": "dictionaries", "stool": "stools",
    "whiteboard marker": "whiteboard markers", "bench": "benches", "coat hook": "coat hooks", "plant pot": "plant pots",
    "headset": "headsets", "webcam": "webcams",
}  # fmt: skip
COLOURS = ("red", "blue", "green", "black", "white", "grey", "yellow", "light blue", "dark green", "beige")
COUNTS = {
    1: ("a", "one", "1", "a single"), 2: ("two", "2", "a pair of", "a couple of"), 3: ("three", "3", "3x"), 4: ("four", "4"),
    5: ("five", "5", "5x"), 6: ("six", "6", "half a dozen"), 8: ("eight", "8"), 10: ("ten", "10"), 12: ("twelve", "12", "a dozen"),
    15: ("fifteen", "15"), 20: ("twenty", "20"), 24: ("24", "two dozen"), 40: ("forty", "40"),
}  # fmt: skip
"""Ways to write a count."""
NAMES = (
    "Anna Berg", "Tom Okafor", "Li Wei", "Maria Souza", "J. Patel", "Dr. Novak", "Sofia Rossi", "Hakim", "Mrs. Dalton", "Yuki Tanaka",
    "Pierre Martin", "Olga", "Sam Lee", "Fatima Zahra", "Erik Lund",
)  # fmt: skip
DAYS = {
    "monday": ("Monday", "Mon", "monday"), "tuesday": ("Tuesday", "Tue"), "wednesday": ("Wednesday", "Wed", "midweek on Wednesday"),
    "thursday": ("Thursday", "Thu", "thurs"), "friday": ("Friday", "Fri", "the end of the week, Friday"), "saturday": ("Saturday", "Sat"),
    "sunday": ("Sunday", "Sun"),
}  # fmt: skip
OPENINGS = (
    "Hi, I'd like {items}", "Please send us {items}", "We need {items}", "Could I get {items}?", "order: {items}", "{items}, please",
    "Hello! Can you put me down for {items}", "Good morning, our office is short of {items}", "Another order from us: {items}",
    "One more time {items}",
)  # fmt: skip
WHENS = ("", "", " by {day}", " for {day}", ". Deliver on {day}", ". It has to be here on {day}", ", {day} is fine")
ENDS = (
    "",
    "",
    ". Regards, {name}",
    ". This is {name}.",
    " - {name}",
    ". Invoice to {name}",
    ". Name: {name}",
    ". Thanks, {name}",
)
REPAIRS = (
    "{text}. Sorry, make that {count} {plural}",
    "{text}. Wait, we need {count} {plural} instead",
    "{text}. Correction: {count} {plural}",
)
REMOVALS = (
    "{text}. No {plural} after all",
    "{text}. On second thought, skip the {plural}",
    "{text}. Forget the {plural}, we found some",
)
ASIDES = (
    "",
    "",
    "",
    ". The last {other} were great",
    ". No {other} this time",
    ". We still have enough {other}",
    ". Call {number} if anything is unclear",
)


def order(drawn: random.Random) -> tuple[str, str]:
    """Return an order and its content as JSON."""
    *things, other = drawn.sample(sorted(THINGS), drawn.choice([1, 2, 2, 3, 3, 4]) + 1)
    items: list[dict[str, Any]] = []
    spoken = []
    for thing in things:
        count = drawn.choice(sorted(COUNTS))
        colour = drawn.choice(COLOURS) if drawn.random() < 0.4 else ""
        items.append({"item": thing, "count": count} | ({"colour": colour} if colour else {}))
        spoken.append(
            " ".join(filter(None, (drawn.choice(COUNTS[count]), colour, thing if count == 1 else THINGS[thing])))
        )
    joined = drawn.choice([", ", ", ", " and ", "; ", " plus "]).join(
        filter(None, (", ".join(spoken[:-1]), spoken[-1]))
    )
    text = drawn.choice(OPENINGS).format(items=joined)
    change, place = drawn.random(), drawn.randrange(len(items))
    plural = THINGS[items[place]["item"]]
    if change < 0.15:
        count = drawn.choice([number for number in COUNTS if number not in (1, items[place]["count"])])
        text = drawn.choice(REPAIRS).format(text=text, count=drawn.choice(COUNTS[count]), plural=plural)
        items[place]["count"] = count
    elif change < 0.3 and len(items) > 1:
        text = drawn.choice(REMOVALS).format(text=text, plural=plural)
        del items[place]
    day, name = drawn.choice(sorted(DAYS)), drawn.choice(NAMES)
    when, aside, end = drawn.choice(WHENS), drawn.choice(ASIDES), drawn.choice(ENDS)
    text += (
        when.format(day=drawn.choice(DAYS[day]))
        + aside.format(other=THINGS[other], number=drawn.randint(200, 9000))
        + end.format(name=name)
    )
    if drawn.random() < 0.2:
        text = text.lower()
        name, items = (
            name.lower(),
            [{key: value.lower() if isinstance(value, str) else value for key, value in one.items()} for one in items],
        )
    found = {"items": items} | ({"day": day} if when else {}) | ({"name": name} if end else {})
    return text, json.dumps(found, ensure_ascii=False)
