"""Two replicas of a model behind Ray Serve LLM, an OpenAI-compatible server in front, and wait-core in all three.

    python examples/ray_fleet.py Qwen/Qwen3-8B        then: curl http://127.0.0.1:8000/v1/models

`request_router_config("round-robin")` and the like select another router; docs/ray.md lists what to install.
"""

import sys

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from wait_core.fleet.ray import WaitLLMServer, request_router_config

model = sys.argv[1]
config = LLMConfig(
    model_loading_config={"model_id": "model", "model_source": model},
    server_cls=WaitLLMServer,  # reports how busy its engine is
    engine_kwargs={"scheduler_cls": "wait_core.vllm.WaitScheduler"},
    deployment_config={"num_replicas": 2, "request_router_config": request_router_config("forecast")},
)
serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)
