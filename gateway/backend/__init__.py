"""Draw answers from model servers: TGI, vLLM (and SGLang), llama.cpp.

The way of a draw: ``pools`` lends a race the ``pool`` of its policy's servers. ``failover`` chooses the replica, and
``prompt_length`` refuses a prompt that is too long for it. ``hedging`` starts the draw, and a second one if it is
overdue. ``draws`` waits for a place at the server (``limit``), makes the call and learns from its end. ``calls`` writes
the request by the server's ``flavours`` and sends it: ``hub`` (huggingface_hub's client) over ``http`` (aiohttp).
``reading`` turns the answer, whole or streamed, into OpenAI's terms; an error (``failures``) goes back up to
``failover``, which tries another replica.

The modules besides these:

    route             one race's way through the fleet, and one draw on it
    replicas          the servers' load and health, and the choice among them
    health            passive health: failures, ejection, probation
    prober            active health: draws of one token for replicas that are ejected or silent
    readiness         the health check of all replicas, for /health/ready
    containment       requests that break servers; shared_containment shares them through Redis
    standing_check    repeated weight checks of adapters that servers do not list
    server            one server's other routes: health, identity, limits, list of adapters
    kind, identify    the servers' kind, set or asked for, and the routes that identify it
    adapters          the adapters that replicas list, and loading lost ones again
    discovery         servers behind one DNS name
    tool_calls        tool calls in OpenAI's shape
    stopping          cuts at stop strings
    budget            bounds retries and hedges to a share of the draws
    usual_time        the usual duration of draws
"""
