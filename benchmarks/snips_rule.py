"""Regular expressions for SNIPS, written by hand in fifteen minutes from training rows: a baseline for extraction."""

from __future__ import annotations

import json
import re

N = r"(?:\d+|zero|one|two|three|four|five|six|seven|eight|nine|ten)"
TYPE = r"(?:restaurant|bar|pub|bistro|brasserie|diner|steakhouse|tavern|cafe|tea house|food court|gastropub|cafeteria|fast food|joint|bakery)"
WHEN = (
    r"(?:(?:in|for|at|on|this|next|within|after|before) )?(?:\d+ (?:hours?|minutes?|days?|weeks?|months?|years?)(?: from now)?|"
    r"[a-z]+ (?:hours?|minutes?|days?|weeks?|months?|years?)(?: from now)?|tomorrow|today|tonight|noon|midnight|"
    r"\d+(?::\d+)? ?(?:am|pm|a\.m\.|p\.m\.|o'clock)|(?:january|february|march|april|may|june|july|august|september|october|november|december)"
    r"(?: \d+(?:st|nd|rd|th)?)?(?:, \d{4})?|(?:mon|tues|wednes|thurs|fri|satur|sun)day)"
)
SERVICES = r"(?:spotify|itunes|iheart(?:radio)?|youtube|deezer|pandora|last fm|lastfm|groove shark|google music|netflix|slacker|vimeo|zvooq)"
WEATHER = re.compile(
    r"\b(?:weather|forecast|rain\w*|snow\w*|cold\w*|hot\w*|warm\w*|sun\w*|wind\w*|cloud\w*|humid\w*|storm\w*|fog\w*|chill\w*|"
    r"freez\w*|temperature|blizzard|hail)\b"
)
SKY = r"(?:raining|rainy|rain|snowing|snowy|snow|sunny|windy|cloudy|stormy|storm|foggy|fog|overcast|blizzard|hail|tornado)"
CREATIVE = (
    r"(?:tv show|tv series|television show|show|book|novel|song|album|painting|picture|photograph|video game|game|movie|trailer|soundtrack|"
    r"saga|program|work of art|creative work)"
)


def extract(text: str) -> str:
    """Return the intent and the slots of a request, as JSON."""
    lower = text.lower()
    if re.match(r"(?:add|put|include)\b", lower) or (
        "playlist" in lower and not re.search(r"\b(?:play|hear|listen)\b", lower)
    ):
        return said("AddToPlaylist", add(text))
    if re.search(r"\b(?:rate|stars?|points?|out of \d|rating)\b", lower) and not re.search(r"\brestaurant\b", lower):
        return said("RateBook", rate(text))
    if re.search(rf"\b(?:book|reserv\w*|table|{TYPE})\b", lower) and not re.match(
        r"(?:find|show|play|search)\b.*\b(?:book|novel)\b", lower
    ):
        return said("BookRestaurant", restaurant(text))
    if WEATHER.search(lower):
        return said("GetWeather", weather(text))
    if re.search(
        r"\b(?:movie (?:times|schedules?|theatres?)|showtimes?|cinema|showing|playing|films?|animated movies|movies?|theatre)\b",
        lower,
    ):
        return said("SearchScreeningEvent", screening(text))
    if re.match(r"(?:please |can you |i want to |i need to |i'd like to |let's )*(?:play|hear|listen)\b", lower):
        return said("PlayMusic", music(text))
    return said("SearchCreativeWork", creative(text))


def said(intent: str, slots: dict[str, str]) -> str:
    return json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)


def found(pattern: str, text: str) -> dict[str, str]:
    match = re.search(pattern, text, re.IGNORECASE)
    return {name: value.strip() for name, value in match.groupdict().items() if value} if match else {}


def add(text: str) -> dict[str, str]:
    slots = found(
        r"(?:add|put|include) (?:the |this |another |a )?(?P<what>.+?) (?:to|in|into|on|onto) (?:the )?(?:(?P<playlist_owner>my|\w+'s) )?"
        r"(?:playlist )?(?:(?:called|named|titled) )?(?P<playlist>.+?)(?: playlist)?[.?]?$",
        text,
    )
    what = slots.pop("what", "")
    item = found(r"^(?P<music_item>song|track|tune|artist|album)(?: by (?P<artist>.+)| (?P<entity_name>.+))?$", what)
    if item.get("music_item") == "artist" and "entity_name" in item:
        item["artist"] = item.pop("entity_name")
    return slots | (item or ({"artist": what} if what else {}))


def rate(text: str) -> dict[str, str]:
    slots = found(
        rf"\b(?P<rating_value>{N})\b(?: (?P<rating_unit>stars?|points?))?(?: (?:out )?of (?P<best_rating>{N}))?", text
    )
    slots |= found(r"(?:of|out of) (?P<best_rating>\d+)(?: (?P<rating_unit>stars|points))?", text)
    slots |= found(r"\b(?P<object_select>current|previous|last|next)\b", text) or found(
        r"\b(?P<object_select>this)\b", text
    )
    slots |= found(r"\b(?P<object_type>book|novel|textbook|essay|album|chronicle|series|saga)\b", text)
    if "object_select" not in slots:
        slots |= found(
            rf"(?:rate|give) (?:(?:the )?(?:book|novel|album|series|saga|chronicle) )?(?P<object_name>.+?)(?: with)?(?: a)? {N}\b",
            text,
        )
    return slots


def restaurant(text: str) -> dict[str, str]:
    slots = found(rf"(?P<restaurant_type>{TYPE})", text)
    slots |= found(rf"(?:for|party of|of) (?P<party_size_number>{N})\b", text)
    slots |= found(
        r"for (?P<party_size_description>(?:me|my|my \w+|\w+)(?:,? and .+?| and i))(?: in | at |[.?]?$)", text
    )
    slots |= found(rf"(?P<timeRange>{WHEN})", text)
    slots |= found(r"\bin (?P<city>[A-Z][\w.' ]+?), (?P<state>[A-Z]{2}|[A-Z][\w ]+?)(?: |[.?]?$)", text)
    if "city" not in slots:
        slots |= found(
            r"\bin (?P<state>[A-Z]{2}|Alabama|Alaska|Arizona|California|Texas|Florida|Ohio|Utah|Kansas|Iowa|Idaho|Nevada)\b",
            text,
        )
    if not {"city", "state"} & {*slots}:
        slots |= found(r"\bin (?P<country>[A-Z][a-z]+(?: [A-Z][a-z]+)*)", text)
    slots |= found(r"\b(?P<spatial_relation>nearby|close by|near|within walking distance|far from)\b", text)
    slots |= found(r"\b(?P<sort>best|highly rated|top-rated|popular)\b", text)
    return slots


def weather(text: str) -> dict[str, str]:
    slots = found(rf"(?P<timeRange>{WHEN})", text)
    slots |= found(
        r"\b(?P<condition_temperature>colder|cold|hotter|hot|warmer|warm|chilly|freezing|humid|temperate)\b", text
    )
    slots |= found(rf"\b(?P<condition_description>{SKY})\b", text)
    slots |= found(r"\b(?:in|for|at) (?P<city>[A-Z][\w.' ]+?), (?P<state>[A-Z]{2}|[A-Z][\w ]+?)(?: |[.?]?$)", text)
    if "city" not in slots:
        slots |= found(r"\b(?:in|for) (?P<country>[A-Z][a-z]+(?: [A-Z][a-z]+)*)", text)
    slots |= found(r"\b(?P<current_location>here|current (?:place|location|position|spot))\b", text)
    return slots


def screening(text: str) -> dict[str, str]:
    slots = found(r"\b(?P<object_type>movie times|movie schedules?|showtimes|schedules?|theatre times)\b", text)
    slots |= found(r"\b(?P<movie_type>animated movies|films|movies)\b", text)
    slots |= found(
        r"\b(?P<spatial_relation>in the (?:area|neighborhood)|nearby|closest|nearest|close by|around here)\b", text
    )
    slots |= found(r"\b(?P<object_location_type>movie theatre|movie house|cinema)s?\b", text)
    slots |= found(r"\bat (?P<location_name>[A-Z][\w' ]+?)[.?]?$", text)
    slots |= found(rf"(?P<timeRange>{WHEN})", text)
    slots |= found(r"\b(?:is|for|see|watch) (?P<movie_name>[A-Z][\w' ]+?)(?: playing| at|[.?]?$)", text)
    return slots


def music(text: str) -> dict[str, str]:
    slots = found(rf"(?:on|from|off|using|with) (?P<service>{SERVICES})\b", text)
    slots |= found(r"(?:from|in) (?:the )?(?P<year>\d{4}|\w+ties)", text)
    slots |= found(r"\b(?P<sort>top|best|most popular|popular|newest|latest|greatest|good)\b", text)
    slots |= found(r"\b(?P<music_item>song|track|tune|album|soundtrack|record|concerto|symphony)\b", text)
    rest = re.sub(rf"(?:on|from|off|using|with) {SERVICES}\b", "", text, flags=re.IGNORECASE).strip(" .?")
    slots |= found(r"\bby (?P<artist>.+?)(?: from| on|$)", rest)
    if "artist" not in slots and "music_item" not in slots:
        slots |= found(r"^(?:please )?play (?:some |me )?(?:music (?:by|from) )?(?P<artist>.+?)$", rest)
    return slots


def creative(text: str) -> dict[str, str]:
    slots = found(rf"\b(?P<object_type>{CREATIVE})\b", text)
    verbs = "find|show|search for|look for|look up|play|see|watch|get"
    name = found(rf"(?:{CREATIVE})(?:,| called| titled| named)? (?P<object_name>.+?)[.?!]?$", text)
    name = name or found(
        rf"(?:{verbs})(?: me| for me| for)?(?: the| a)? (?P<object_name>.+?)(?: {CREATIVE})?[.?!]?$", text
    )
    return slots | name
