"""Log lines of twelve formats, and their fields as JSON: a generated data set of `ten_sets.py`.

The rule: `time`, `service`, `host`, `client`, `user` and `path` are copied from the line, and are left out where the line has none. `level`
is the line's level as one of debug, info, warning, error and critical, whatever the format's name for it; a web server's line has the
level error from status 500, warning from 400, else info; a line without any has the level of its message. `took_ms` is a duration in
milliseconds, whatever its unit in the line.
"""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from typing import Any

LEVELS = ("debug", "info", "info", "info", "warning", "warning", "error", "error", "critical")
SERVICES = (
    "auth", "billing", "catalog", "checkout", "dns", "ingest", "inventory", "mailer", "media", "metrics", "orders", "payments", "proxy",
    "queue", "reports", "scheduler", "search", "sessions", "shipping", "storage", "sync", "thumbnailer", "users", "webhooks",
)  # fmt: skip
PARTS = ("api", "worker", "server", "gateway", "cron", "db", "cache", "")
PLACES = ("web", "db", "cache", "edge", "node", "app", "build", "mail", "lb", "store")
SITES = ("", "", "", ".prod", ".eu-west", ".lan", ".example.com")
USERS = (
    "alice", "bob", "carla.m", "d_ngo", "root", "postgres", "deploy", "svc-ci", "emma77", "farid", "guest", "admin", "jo.lind", "www-data",
)  # fmt: skip
FILES = (
    "/api/v2/items", "/login", "/health", "/var/lib/data/index.db", "/static/app.js", "/etc/app/config.yml", "/tmp/upload-8831",
    "/users/42/cart", "/export/march.csv", "/search?q=red+shoes",
)  # fmt: skip
MESSAGES = {
    "debug": ("cache lookup for {path}", "heartbeat from {client}", "loaded {n} rows", "session of {user} refreshed",
    "retry {n} scheduled", "parsed {path} in {took}"),
    "info": ("accepted connection from {client}", "user {user} logged in from {client}", "request {path} finished in {took}",
    "started with {n} workers",
             "backup written to {path}", "{user} uploaded {path}", "job {n} done, took {took}", "listening on port {n}",
             "rotated {path}", "config reloaded by {user}"),
    "warning": ("slow query ({took}) for {user}", "disk usage at 9{digit} %", "{client} sent an invalid header",
    "retrying {path} after {took}", "login of {user} failed from {client}",
                "deprecated option in {path}", "queue has {n} waiting jobs", "certificate expires in {digit} days"),
    "error": ("cannot open {path}: permission denied", "connection to {client} lost after {took}", "no such user: {user}",
    "job {n} failed", "timeout of {took} exceeded",
              "{client} refused the connection", "write to {path} failed", "payment of {user} declined by {client}"),
    "critical": ("out of memory after {took}", "data of {path} is corrupt", "no replica left, last was {client}", "panic in worker {n}",
    "disk full while writing {path}"),
}  # fmt: skip
"""Messages for each level, with the fields that they have."""
WORDS = {
    "python": ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    "log4j": ("TRACE", "INFO", "WARN", "ERROR", "FATAL"),
    "short": ("dbg", "inf", "wrn", "err", "crt"),
    "letter": ("D", "I", "W", "E", "F"),
    "syslog": ("7", "6", "4", "3", "2"),
    "postgres": ("DEBUG1", "LOG", "WARNING", "ERROR", "PANIC"),
    "german": ("Debug", "Hinweis", "Warnung", "Fehler", "Kritisch"),
}
"""The names of the five levels in formats."""
ORDER = ("debug", "info", "warning", "error", "critical")
FORMS = (
    ("python", "%Y-%m-%d %H:%M:%S,123", "{time} {word:<8} {service} {message}"),
    ("python", "%Y-%m-%d %H:%M:%S", "{time} - {service} - {word} - {message}"),
    ("log4j", "%d/%b/%y %H:%M:%S", "{time} {word} {service}: {message}"),
    ("log4j", "%Y-%m-%dT%H:%M:%S.%fZ", "[{time}] [{word}] [{service}] [thread-{n}] {message} (host={host})"),
    ("letter", "%m%d %H:%M:%S.%f", "{word}{time} {n} {service}.go:{digit}1] {message}"),
    ("syslog", "%b %d %H:%M:%S", "<{word}>{time} {host} {service}[{n}]: {message}"),
    ("", "%b %d %H:%M:%S", "{time} {host} {service}[{n}]: {message}"),
    ("postgres", "%Y-%m-%d %H:%M:%S.%f UTC", "{time} [{n}] {host} {service} {word}:  {message}"),
    ("short", "%Y-%m-%dT%H:%M:%S+02:00", 'ts={time} lvl={word} svc={service} msg="{message}" host={host}'),
    ("short", "%H:%M:%S", "{time} | {word} | {message} | {service}@{host}"),
    (
        "python",
        "%Y-%m-%dT%H:%M:%SZ",
        '{{"level":"{word}","logger":"{service}","msg":"{message}","@timestamp":"{time}"}}',
    ),
    ("german", "%d.%m.%Y %H:%M", "{time} {word} in {service} auf {host}: {message}"),
)
"""Formats: the names of the levels or none, the form of the time, and that of the line. The web server's format is in `log_line`."""
UNITS = (("ms", 1), ("s", 1000), (" ms", 1), (" sec", 1000), ("us", 0.001), (" minutes", 60_000))
COPIED = ("time", "service", "host", "client", "user", "path")


def log_line(drawn: random.Random) -> tuple[str, str]:
    """Return a log line and its fields as JSON."""
    moment = datetime(2022, 1, 1) + timedelta(seconds=drawn.randrange(150_000_000), microseconds=drawn.randrange(10**6))
    unit, factor = drawn.choice(UNITS)
    amount = (
        drawn.randint(1, 90) if factor >= 1000 else drawn.choice([drawn.randint(1, 900), 1000 * drawn.randint(1, 60)])
    )
    place = f"{drawn.choice(PLACES)}{drawn.choice(['', '-', '-0'])}{drawn.randint(1, 40)}{drawn.choice(SITES)}"
    values: dict[str, Any] = {
        "service": "-".join(filter(None, (drawn.choice(SERVICES), drawn.choice(PARTS)))),
        "host": place,
        "client": ".".join(str(drawn.randint(1, 254)) for _ in range(4)),
        "user": drawn.choice(USERS),
        "path": drawn.choice(FILES),
        "took": f"{amount}{unit}",
        "n": drawn.randint(2, 60_000),
        "digit": drawn.randint(1, 9),
    }
    if drawn.random() < 0.15:
        status = drawn.choice([200, 200, 201, 304, 301, 400, 403, 404, 429, 500, 502, 503])
        values |= {
            "level": "error" if status >= 500 else "warning" if status >= 400 else "info",
            "time": moment.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "status": status,
        }
        line = '{client} - {user} [{time}] "GET {path} HTTP/1.1" {status} {n} {took}'
    else:
        names, form, line = drawn.choice(FORMS)
        level = drawn.choice(LEVELS)
        word = WORDS[names][ORDER.index(level)] if names else ""
        message = drawn.choice(MESSAGES[level])
        line = line.replace("{message}", message)
        values |= {"level": level, "word": word, "time": moment.strftime(form)}
    found = {name: values[name] for name in COPIED if "{" + name + "}" in line}
    found |= {"level": values["level"]} | ({"took_ms": round(amount * factor, 3)} if "{took}" in line else {})
    return line.format(**values), json.dumps(found)
