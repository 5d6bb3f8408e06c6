"""``vllm serve`` with the scripted engine: every argument is vLLM's own.

Run by the Python of vLLM's environment: ``python serve.py serve MODEL_FOLDER --port 8000``.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import engine
from vllm.v1.engine.core_client import EngineCoreClient

EngineCoreClient.make_async_mp_client = staticmethod(engine.make_client)

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
