"""A Hugging Face Hub on 127.0.0.1 for the tests: the real client against real HTTP, no mock.

    with Hub(tmp_path).run() as hub:
        commit = hub.publish("org/name", {"config.json": b"{}"})
        ...  # a client with HF_ENDPOINT=hub.url, set before huggingface_hub is imported

`hub.faults` injects errors, `hub.log` has every request. For uploads by Xet take XetHub from hub_server.xet.
"""

from .server import Hub

__all__ = ["Hub"]
