"""What all tests share."""

from __future__ import annotations

import signal

# A shell ignores SIGINT for what it starts with `&`, and whatever that starts inherits it, up to the commands that tests interrupt. A handler,
# unlike being ignored, is not inherited: what tests start has the default again.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
