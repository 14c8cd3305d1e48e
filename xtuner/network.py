"""Whether the model hub can be reached; asked once, since libraries that find out themselves try for minutes."""

import re
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

SECONDS = 5
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What the name of a model or data set on the hub looks like."""


@cache
def hub_is_reachable() -> bool:
    """Whether the hub answers, or a proxy stands before it; False when the user has switched the network off."""
    from huggingface_hub import constants  # 0.1 s, which commands without a model need not wait

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    if getproxies().get(address.scheme):
        return True
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=SECONDS):
            return True
    except OSError:
        return False
