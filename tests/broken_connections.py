"""Publishes again and again to a hub (tests/hub_server.py) of which one request after another breaks.

RUN HUB MODE FAULT FIRST STEP REVISION...: the fault meets request FIRST, then FIRST + STEP, and so on.

In a process of its own: huggingface_hub reads its environment when it is imported.
"""

import os
import sys
from pathlib import Path

from hub_server import HubServer


def main(run, root, mode, fault, first, step, *names):
    """Spoil requests in turn, repeat the command, compare with an undisturbed one."""
    with HubServer(Path(root), mode) as hub:
        os.environ.update(hub.environment())
        from hf_wsd.errors import PublishError
        from hf_wsd.publishing import publish

        wanted = {"only": names, "stable": ["all"], "attempts": 1}
        publish(Path(run), repo="tester/whole", **wanted)
        branches = list(hub.refs("tester/whole"))
        whole = {name: hub.files("tester/whole", name) for name in branches}
        begun: list[str] = []

        def look():
            """Whatever is visible is whole; a new repository's main is empty."""
            for name in hub.refs(begun[-1]) if begun else ():
                if not name.startswith("publishing-"):
                    files = hub.files(begun[-1], name).keys() - {".gitattributes"}
                    assert files == whole[name].keys() - {".gitattributes"} or (name == "main" and not files), name

        hub.on_request = look
        for nth in range(int(first), len(hub.requests) + 1, int(step)):
            begun.append(f"tester/break{nth}")
            hub.fault(nth, fault)
            try:
                publish(Path(run), repo=begun[-1], **wanted)
            except PublishError:
                publish(Path(run), repo=begun[-1], **wanted)
            assert {*hub.refs(begun[-1])} == {*branches}, (nth, hub.refs(begun[-1]))
            for name in branches:
                there = hub.files(begun[-1], name)
                there = {file: text.replace(b"break%d" % nth, b"whole") for file, text in there.items()}
                assert there == whole[name], (nth, name)
        print(f"{len(begun)} requests")


if __name__ == "__main__":
    main(*sys.argv[1:])
