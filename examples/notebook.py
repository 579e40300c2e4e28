# %% [markdown]
# # What noise does to answers
#
# A notebook as a script. VS Code and Jupyter (jupytext) run it cell by cell; or run it whole:
#
#     .venv/bin/python examples/notebook.py
#
# A notebook has an event loop of its own, and a script has none. So the nodes get one in a thread,
# the *portal*, and cells call into it.

# %%
from contextlib import ExitStack

from anyio.from_thread import start_blocking_portal

from broker import Broker
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode

PASSAGE = (
    "Kewyn is a weaver. She lives in Marshmoor. Kewyn keeps a striped dog. In spring she bought "
    "twelve combs from Dador. She likes salt herring."
)
QUESTIONS = ("Where does Kewyn live?", "What did she buy?", "What does Kewyn keep?")

notebook = ExitStack()
portal = notebook.enter_context(start_blocking_portal())

# %% [markdown]
# ## A broker and a trunk node
#
# In this process, to begin with. To use a system that runs elsewhere, leave this cell out and load
# that system's file: `settings = Settings.load(Path("configs/one-machine.yaml"))`.

# %%
settings = Settings.load(
    None, ["broker.clients=tcp://127.0.0.1:*", "broker.nodes=tcp://127.0.0.1:*"]
)
broker = notebook.enter_context(
    portal.wrap_async_context_manager(Broker(settings.broker, settings.security))
)
settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
trunk = notebook.enter_context(portal.wrap_async_context_manager(TrunkNode(settings)))
portal.call(trunk.registered)

# %% [markdown]
# ## Clients, each with another noise
#
# `scale` is in RMS of the head's output. Each client draws noise of its own.


# %%
def client_with_noise(scale: float) -> ClientNode:
    noisy = settings.replace(noise={"mode": "relative", "scale": scale})
    return notebook.enter_context(portal.wrap_async_context_manager(ClientNode(noisy)))


SCALES = (0.0, 0.5, 2.0)
clients = {scale: client_with_noise(scale) for scale in SCALES}

# %% [markdown]
# ## Ask


# %%
async def answers(client: ClientNode) -> list[str]:
    """What a client is told of each question, one after the other."""
    async with client.conversation(SamplingSettings(max_new_tokens=16)) as talk:
        asked = (f"{PASSAGE}\n{QUESTIONS[0]}", *QUESTIONS[1:])
        return ["".join([token.text async for token in talk.say(one)]) for one in asked]


heard = {scale: portal.call(answers, client) for scale, client in clients.items()}
for scale, said in heard.items():
    print(f"noise {scale:3.1f}:  {'  |  '.join(said)}")

# %% [markdown]
# ## What it cost


# %%
async def cost(client: ClientNode) -> str:
    completion = await client.generate(PASSAGE, SamplingSettings(max_new_tokens=32)).complete()
    up, down = completion.stats.bytes_per_token
    return f"{completion.stats.tpot_ms:.1f} ms and {up:.0f} bytes up, {down:.0f} down a token"


print(portal.call(cost, clients[0.5]))

# %% [markdown]
# ## The end
#
# Everything is closed in the reverse order.

# %%
notebook.close()
