"""What all tests share."""

from __future__ import annotations

import signal

from hypothesis import settings

# A shell ignores SIGINT for what it starts with `&`, and whatever that starts inherits it, up to the commands that tests interrupt. A handler,
# unlike being ignored, is not inherited: what tests start has the default again.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A property holds on a slow machine, too: hypothesis gives an example 200 ms by default.
settings.register_profile("default", settings.get_profile("default"), deadline=None)
settings.load_profile("default")
