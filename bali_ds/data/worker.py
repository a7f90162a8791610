"""A worker process of the loader: makes every so-manieth step and writes it to its standard output.

It is started as `python -m bali_ds.data.worker` with a JSON description on standard input and imports no torch, so
that it starts in a fraction of a second and stays small. It ends when its reader is gone, however that came about.
"""

import json
import os
import sys
import traceback
from dataclasses import asdict
from typing import Any

from bali_ds.data.batch_sampler import RankSteps, Share
from bali_ds.data.mixture import Mixture, open_parts, parts_of
from bali_ds.data.sampler import Position
from bali_ds.data.serialization import send_error, send_step
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph


def description(
    shards: Mixture,
    graph: KnowledgeGraph,
    settings: StreamSettings,
    share: Share,
    start: Position,
    worker: int,
    of: int,
) -> str:
    """Return the line that tells a worker its work: the steps `worker`, `worker + of`, ... of a rank."""
    return json.dumps(
        {
            "shards": parts_of(shards),
            "graph": str(graph.path),
            "settings": asdict(settings),
            "share": asdict(share),
            "start": asdict(start),
            "steps": [worker, of],
        }
    )


def main() -> None:
    """Serve one loader until it goes away."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not get between the steps
    try:
        work = json.loads(sys.stdin.readline())
        try:
            for step in _open(work).run(*work["steps"]):
                send_step(stream, step)
        except InputError as error:
            send_error(stream, error)
        except BrokenPipeError:
            raise
        except Exception as error:
            traceback.print_exc()
            send_error(stream, error)
    except BrokenPipeError:
        os._exit(0)


def _open(work: dict[str, Any]) -> RankSteps:
    return RankSteps(
        open_parts(work["shards"]),
        KnowledgeGraph.open(work["graph"]),
        StreamSettings(**work["settings"]),
        Share(**work["share"]),
        Position(**work["start"]),
    )


if __name__ == "__main__":
    main()
