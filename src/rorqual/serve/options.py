"""Settings of the server, which are options of `rorqual serve`: address, keys and limits."""

from __future__ import annotations

from pydantic import Field

from rorqual.core.config import Config, Count, Natural, Positive


class ServerOptions(Config):
    """The address of the server, its keys and its limits."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Natural = Field(8000, le=65535, description="port; 0: any free one")
    name: str = Field("", max_length=256, description="name of the model; default: the run's")
    tenant: str = Field("default", description="tenant that gets a key if it has none")
    keys: str = Field("", description="file of the hashes of API keys; default: in the user's configuration")
    queue: Count = Field(256, le=100_000, description="maximum waiting requests")
    rate: Positive = Field(
        100, description="requests per second of one tenant, after a second's worth or a full queue at once"
    )
    max_body: int = Field(8 * 2**20, ge=1024, le=2**30, description="maximum bytes of a request")
    grace: Positive = Field(30, ge=1, le=3600, description="seconds to finish open requests on Ctrl-C")
    hang: Positive = Field(
        120, ge=1, le=86_400, description="restart an engine that gives no sign of life for this many seconds"
    )
    load: Positive = Field(3600, ge=1, le=86_400, description="maximum seconds to load the engine")
    ui: bool = Field(True, description="serve the chat page at /")
    operator: str = Field("default", description="tenant that may read the metrics of all tenants")
    stall: Positive = Field(
        30, ge=0.1, le=3600, description="disconnect a client that reads nothing for this many seconds"
    )
    cors: str = Field("", description="allowed origins, separated by commas")
    think_budget: Natural = Field(
        0, description="maximum thinking tokens of a chat reply, unless the request sets its own; 0: no limit"
    )
